import { createHash } from "node:crypto";
import { isMeterName } from "./meters.ts";
import { parseUnitPrice, type UnitPrice } from "./rate.ts";
import { maxFutureMs, windowMs } from "./usage-window.ts";

export interface Price {
  readonly meter: string;
  /** Decimal number of currency units… */
  readonly amount: string;
  /** …for so many base units of the meter. */
  readonly perQuantity: string;
}

/** What a version of a price book says, before it is hashed. */
export interface PriceBookTerms {
  /** book_… */
  readonly id: string;
  /** ISO 4217 code. */
  readonly currency: string;
  /** Digits after the point of an amount on a line. */
  readonly exponent: number;
  /** It prices the windows that start at this instant or later, until the next book's. */
  readonly effectiveFromMs: number;
  readonly prices: readonly Price[];
}

export interface PriceBook extends PriceBookTerms {
  /** sha256 of the terms, hex. */
  readonly hash: string;
}

/**
 * Names the terms by their sha256: id, currency, exponent and effective instant, then `meter amount per_quantity` of each
 * price in the order of the meters' names, joined by line feeds.
 */
export function sealPriceBook(terms: PriceBookTerms): PriceBook {
  const prices = terms.prices.toSorted((a, b) => (a.meter < b.meter ? -1 : 1));
  const lines = [
    terms.id,
    terms.currency,
    `${terms.exponent}`,
    `${terms.effectiveFromMs}`,
    ...prices.map(({ meter, amount, perQuantity }) => `${meter} ${amount} ${perQuantity}`),
  ];
  return { ...terms, prices, hash: createHash("sha256").update(lines.join("\n")).digest("hex") };
}

/** A book prices nothing that may have been received before it was known, so it has to be told this long before. */
export const noticeMs = maxFutureMs;

/** Why the terms cannot become a book at `nowMs`; undefined when they can. */
export function faultOfTerms(terms: PriceBookTerms, nowMs: number): string | undefined {
  const { effectiveFromMs, prices } = terms;
  if (!/^[A-Z]{3}$/.test(terms.currency)) return "currency: not an ISO 4217 code";
  if (!(Number.isInteger(terms.exponent) && terms.exponent >= 0 && terms.exponent <= 12)) {
    return "exponent: not between 0 and 12";
  }
  if (effectiveFromMs % windowMs !== 0) return "effective_from_ms: not the start of a minute";
  if (effectiveFromMs <= nowMs + noticeMs) {
    return `effective_from_ms: usage up to ${nowMs + noticeMs} may be priced already; a book takes effect after that`;
  }
  for (const { meter, amount, perQuantity } of prices) {
    if (!isMeterName(meter)) return `prices: there is no meter "${meter}"`;
    if (parseUnitPrice(amount, perQuantity) === undefined) return `prices: the price of ${meter} is malformed`;
    if (prices.filter((price) => price.meter === meter).length > 1) return `prices: ${meter} is priced twice`;
  }
  return undefined;
}

/** The book that prices an instant. `books` may be in any order; undefined when none is effective yet. */
export function bookAt(books: readonly PriceBook[], atMs: number): PriceBook | undefined {
  let found: PriceBook | undefined;
  for (const book of books) {
    const effective = book.effectiveFromMs <= atMs;
    if (effective && (found === undefined || book.effectiveFromMs > found.effectiveFromMs)) found = book;
  }
  return found;
}

/** What the book asks for a base unit of `meter`; a meter that it does not name costs nothing. */
export function unitPriceOf(book: PriceBook, meter: string): UnitPrice {
  const price = book.prices.find((candidate) => candidate.meter === meter);
  const parsed = price === undefined ? undefined : parseUnitPrice(price.amount, price.perQuantity);
  return parsed ?? { numerator: 0n, denominator: 1n };
}

const gib = 1n << 30n;

/** What usage costs until an operator says otherwise: US dollars, shown to the millionth. */
export const defaultPriceBook: PriceBook = sealPriceBook({
  id: "book_00000000000000000000000000",
  currency: "USD",
  exponent: 6,
  effectiveFromMs: 0,
  prices: [
    { meter: "cpu_time", amount: "0.00002", perQuantity: "1000000" }, // a vCPU-second
    { meter: "memory", amount: "0.0000025", perQuantity: `${gib * 1000n}` }, // a GiB-second
    { meter: "disk", amount: "0.00000004", perQuantity: `${gib * 1000n}` }, // a GiB-second
    { meter: "net_out", amount: "0.05", perQuantity: `${gib}` }, // a GiB
    { meter: "net_in", amount: "0", perQuantity: "1" },
    { meter: "disk_read", amount: "0", perQuantity: "1" },
    { meter: "disk_write", amount: "0", perQuantity: "1" },
  ],
});
