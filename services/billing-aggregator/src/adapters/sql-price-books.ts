import { ServiceError } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import { type Price, type PriceBook, sealPriceBook } from "../domain/price-book.ts";
import type { PriceBookStore } from "../ports.ts";

/** An operator adds a book now and then; more than this is a mistake. All of them are in memory for each report. */
const maxBooks = 1_000;

interface BookRow {
  readonly price_book_id: string;
  readonly currency: string;
  readonly exponent: number;
  readonly effective_from_ms: number;
  readonly prices: string;
  readonly hash: string;
}

/** Price books in a SQL database, written once and never changed. */
export class SqlPriceBooks implements PriceBookStore {
  readonly #sql: Sql;

  private constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** Writes `first` when there is no book at all. */
  static async open(sql: Sql, first: PriceBook): Promise<SqlPriceBooks> {
    await sql.transaction(async (tx) => {
      if ((await read(tx, "LIMIT 1", [])).length === 0) await insert(tx, first);
    });
    return new SqlPriceBooks(sql);
  }

  list(): Promise<PriceBook[]> {
    return read(this.#sql, "ORDER BY effective_from_ms DESC LIMIT ?", [maxBooks]);
  }

  add(book: PriceBook): Promise<{ readonly added: boolean; readonly book: PriceBook }> {
    return this.#sql.transaction(async (tx) => {
      const [known] = await read(
        tx,
        "WHERE price_book_id = ? OR effective_from_ms = ? ORDER BY price_book_id = ? DESC",
        [book.id, book.effectiveFromMs, book.id],
      );
      if (known !== undefined) return { added: false, book: known };
      if ((await read(tx, "LIMIT ?", [maxBooks])).length === maxBooks) {
        throw new ServiceError("RESOURCE_EXHAUSTED", `there are ${maxBooks} price books already`);
      }
      await insert(tx, book);
      return { added: true, book };
    });
  }
}

async function read(sql: SqlStatements, tail: string, params: readonly (string | number)[]): Promise<PriceBook[]> {
  const rows = await sql.query<BookRow>(
    `SELECT price_book_id, currency, exponent, effective_from_ms, prices, hash FROM price_book ${tail}`,
    params,
  );
  return rows.map((row) => {
    const book = sealPriceBook({
      id: row.price_book_id,
      currency: row.currency,
      exponent: row.exponent,
      effectiveFromMs: row.effective_from_ms,
      prices: JSON.parse(row.prices) as Price[],
    });
    if (book.hash !== row.hash) throw new Error(`price book ${row.price_book_id} was changed after it was written`);
    return book;
  });
}

async function insert(tx: SqlStatements, book: PriceBook): Promise<void> {
  await tx.run(
    `INSERT INTO price_book (price_book_id, currency, exponent, effective_from_ms, prices, hash)
     VALUES (?, ?, ?, ?, ?, ?)`,
    [book.id, book.currency, book.exponent, book.effectiveFromMs, JSON.stringify(book.prices), book.hash],
  );
}
