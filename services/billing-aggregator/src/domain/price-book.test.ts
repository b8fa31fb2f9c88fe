import assert from "node:assert/strict";
import { test } from "node:test";
import {
  bookAt,
  defaultPriceBook,
  faultOfTerms,
  noticeMs,
  type PriceBookTerms,
  sealPriceBook,
  unitPriceOf,
} from "./price-book.ts";
import { formatAmount, rate } from "./rate.ts";

const nowMs = Date.UTC(2026, 10, 23, 13);
const terms: PriceBookTerms = {
  id: "book_0123456789abcdefghjkmnpqrs",
  currency: "EUR",
  exponent: 4,
  effectiveFromMs: nowMs + 3_600_000,
  prices: [
    { meter: "net_out", amount: "0.04", perQuantity: "1073741824" },
    { meter: "cpu_time", amount: "0.00001", perQuantity: "1000000" },
  ],
};

test("the default book charges what its documentation says", () => {
  const cost = (meter: string, quantity: bigint) =>
    formatAmount(rate([{ quantity, price: unitPriceOf(defaultPriceBook, meter) }], 6), 6);
  const hour = 3600n;
  assert.equal(cost("cpu_time", hour * 1_000_000n), "0.072000");
  assert.equal(cost("memory", hour * 1000n * 2n ** 30n), "0.009000");
  assert.equal(cost("disk", hour * 1000n * 2n ** 30n), "0.000144");
  assert.equal(cost("net_out", 2n ** 30n), "0.050000");
  for (const free of ["net_in", "disk_read", "disk_write", "unheard_of"])
    assert.equal(cost(free, 2n ** 60n), "0.000000");
  // A released default book is data that lines refer to by hash: another price needs another book.
  assert.equal(defaultPriceBook.hash, "1a24d4d18acaf83ed046ba2dd8bb6b04fde672c830ad524d6cbfe299ab254417");
});

test("the hash covers every term, and not the order of the prices", () => {
  const { hash } = sealPriceBook(terms);
  assert.equal(sealPriceBook({ ...terms, prices: terms.prices.toReversed() }).hash, hash);
  const changes: Partial<PriceBookTerms>[] = [
    { id: "book_0123456789abcdefghjkmnpqrt" },
    { currency: "USD" },
    { exponent: 5 },
    { effectiveFromMs: terms.effectiveFromMs + 60_000 },
    { prices: terms.prices.slice(1) },
    { prices: terms.prices.map((price) => ({ ...price, amount: "0.05" })) },
    { prices: terms.prices.map((price) => ({ ...price, perQuantity: "7" })) },
  ];
  const hashes = new Set(changes.map((change) => sealPriceBook({ ...terms, ...change }).hash).concat(hash));
  assert.equal(hashes.size, changes.length + 1);
});

test("a book may not price what may have been priced already, or what nobody meters", () => {
  assert.equal(faultOfTerms(terms, nowMs), undefined);
  const price = { meter: "cpu_time", amount: "1", perQuantity: "1" };
  const refused: readonly (readonly [Partial<PriceBookTerms>, RegExp])[] = [
    [{ effectiveFromMs: nowMs - 60_000 }, /effective_from_ms/],
    [{ effectiveFromMs: nowMs + noticeMs }, /effective_from_ms/],
    [{ effectiveFromMs: nowMs + noticeMs + 1 }, /start of a minute/],
    [{ currency: "euro" }, /currency/],
    [{ exponent: 13 }, /exponent/],
    [{ prices: [{ ...price, meter: "gpu" }] }, /no meter "gpu"/],
    [{ prices: [{ ...price, amount: "1e9" }] }, /malformed/],
    [{ prices: [{ ...price, perQuantity: "0" }] }, /malformed/],
    [{ prices: [price, price] }, /twice/],
  ];
  for (const [change, why] of refused) assert.match(faultOfTerms({ ...terms, ...change }, nowMs) ?? "", why);
});

test("the book with the latest effective instant that has come prices", () => {
  const later = sealPriceBook({ ...terms, effectiveFromMs: 120_000 });
  const last = sealPriceBook({ ...terms, effectiveFromMs: 240_000 });
  const books = [later, defaultPriceBook, last];
  const at = (atMs: number) => bookAt(books, atMs)?.effectiveFromMs;
  assert.deepEqual([0, 119_999, 120_000, 239_999, 240_000, 9e12].map(at), [0, 0, 120_000, 120_000, 240_000, 240_000]);
  assert.equal(bookAt([last], 0), undefined);
});
