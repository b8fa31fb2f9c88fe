import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { formatAmount, parseUnitPrice, type RatedPart, rate, roundHalfEven, type UnitPrice } from "./rate.ts";

const quantity = fc.bigInt({ min: 0n, max: 10n ** 36n });
const exponent = fc.constantFrom(0, 2, 3, 6, 12); // JPY, USD, KWD, millionths, the finest
const price = fc
  .tuple(
    fc.bigInt({ min: -(10n ** 18n) + 1n, max: 10n ** 18n - 1n }),
    fc.stringMatching(/^[0-9]{0,12}$/),
    fc.bigInt({ min: 1n, max: 10n ** 38n - 1n }),
  )
  .map(([whole, fraction, per]) => priceOf(fraction === "" ? `${whole}` : `${whole}.${fraction}`, `${per}`));
const part = fc.record({ quantity, price });
const parts = fc.array(part, { maxLength: 5 });

function priceOf(amount: string, per = "1"): UnitPrice {
  const parsed = parseUnitPrice(amount, per);
  assert.ok(parsed, `${amount} per ${per}`);
  return parsed;
}

/** What the parts cost exactly, over one denominator. */
function exact(rated: readonly RatedPart[]): { numerator: bigint; denominator: bigint } {
  return rated.reduce(
    (sum, { quantity: q, price: p }) => ({
      numerator: sum.numerator * p.denominator + q * p.numerator * sum.denominator,
      denominator: sum.denominator * p.denominator,
    }),
    { numerator: 0n, denominator: 1n },
  );
}

test("an amount is never further than half a unit from what is exact, and even when it is half", () => {
  fc.assert(
    fc.property(parts, exponent, (rated, digits) => {
      const { numerator, denominator } = exact(rated);
      const amount = rate(rated, digits);
      const twiceOff = 2n * (amount * denominator - numerator * 10n ** BigInt(digits));
      const distance = twiceOff < 0n ? -twiceOff : twiceOff;
      assert.ok(distance <= denominator);
      if (distance === denominator) assert.equal(amount % 2n, 0n);
    }),
  );
});

test("the order of the parts does not matter", () => {
  const shuffled = parts.chain((rated) =>
    fc.tuple(fc.constant(rated), fc.shuffledSubarray(rated, { minLength: rated.length })),
  );
  fc.assert(
    fc.property(shuffled, exponent, ([rated, other], digits) => {
      assert.equal(rate(rated, digits), rate(other, digits));
    }),
  );
});

test("a quantity may be split anywhere before it is rounded, and costs at most a unit more or less after", () => {
  fc.assert(
    fc.property(quantity, quantity, price, exponent, (a, b, at, digits) => {
      const whole = rate([{ quantity: a + b, price: at }], digits);
      const split = [
        { quantity: a, price: at },
        { quantity: b, price: at },
      ];
      assert.equal(rate(split, digits), whole);
      const apart = split.reduce((sum, one) => sum + rate([one], digits), 0n);
      assert.ok(apart - whole <= 1n && whole - apart <= 1n);
    }),
  );
});

test("a negative price is the mirror of the positive one; nothing used costs nothing", () => {
  fc.assert(
    fc.property(quantity, price, exponent, (q, at, digits) => {
      const mirrored = { ...at, numerator: -at.numerator };
      assert.equal(rate([{ quantity: q, price: mirrored }], digits), -rate([{ quantity: q, price: at }], digits));
      assert.equal(rate([{ quantity: 0n, price: at }], digits), 0n);
      assert.equal(rate([], digits), 0n);
    }),
  );
});

test("an amount grows with the quantity when the price is positive", () => {
  fc.assert(
    fc.property(quantity, quantity, price, exponent, (a, more, at, digits) => {
      fc.pre(at.numerator >= 0n);
      assert.ok(rate([{ quantity: a + more, price: at }], digits) >= rate([{ quantity: a, price: at }], digits));
    }),
  );
});

test("every digit counts: quantities that are one apart beyond 2^53 differ as their price does", () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 2n ** 53n, max: 10n ** 36n }), exponent, (q, digits) => {
      const one = priceOf("1");
      const step = 10n ** BigInt(digits);
      assert.equal(rate([{ quantity: q, price: one }], digits), q * step);
      assert.equal(
        rate([{ quantity: q + 1n, price: one }], digits) - rate([{ quantity: q, price: one }], digits),
        step,
      );
    }),
  );
});

test("rounds halves to the even neighbour on both sides of zero", () => {
  const halves = [-7n, -5n, -3n, -1n, 1n, 3n, 5n, 7n].map((numerator) => roundHalfEven(numerator, 2n));
  assert.deepEqual(halves, [-4n, -2n, -2n, 0n, 0n, 2n, 2n, 4n]);
  assert.deepEqual(
    [-4n, -2n, 2n, 4n].map((numerator) => roundHalfEven(numerator, 3n)),
    [-1n, -1n, 1n, 1n],
  );
});

test("rounds to the currency's digits", () => {
  const used = [{ quantity: 3n, price: priceOf("0.5005") }]; // 1.5015
  assert.deepEqual(
    [0, 2, 3, 4, 6].map((digits) => formatAmount(rate(used, digits), digits)),
    ["2", "1.50", "1.502", "1.5015", "1.501500"],
  );
  assert.equal(formatAmount(rate([{ quantity: 5n, price: priceOf("0.5") }], 0), 0), "2"); // JPY: 2.5 is half
  assert.equal(formatAmount(rate([{ quantity: 7n, price: priceOf("-0.0005") }], 3), 3), "-0.004"); // KWD: -0.0035
});

test("an amount written down reads back as itself", () => {
  fc.assert(
    fc.property(fc.bigInt({ min: -(10n ** 40n), max: 10n ** 40n }), exponent, (units, digits) => {
      const text = formatAmount(units, digits);
      assert.match(text, digits === 0 ? /^-?\d+$/ : /^-?\d+\.\d+$/);
      assert.equal(BigInt(text.replace(".", "")), units);
      assert.equal(text.length - 1 - text.indexOf(".") === digits || digits === 0, true);
    }),
  );
});

test("refuses prices that are not decimal numbers", () => {
  for (const [amount, per] of [
    ["1e3", "1"],
    ["NaN", "1"],
    ["", "1"],
    [".5", "1"],
    ["1.", "1"],
    ["1", "0"],
    ["1", "-1"],
    ["1", "1.5"],
    ["0.0000000000001", "1"],
    ["1", `1${"0".repeat(38)}`],
  ] as const) {
    assert.equal(parseUnitPrice(amount, per), undefined, `${amount} per ${per}`);
  }
});
