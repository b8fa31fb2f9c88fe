// Money: integers and fractions from end to end. Nothing here is ever a floating-point number.

/** An exact number of currency units per base unit of a meter; the denominator is positive. */
export interface UnitPrice {
  readonly numerator: bigint;
  readonly denominator: bigint;
}

/** A quantity at the price that was in force when it was used. */
export interface RatedPart {
  readonly quantity: bigint;
  readonly price: UnitPrice;
}

const decimal = /^(-?)([0-9]{1,18})(?:\.([0-9]{1,12}))?$/;
const positive = /^[1-9][0-9]{0,37}$/;

/** Reads "0.05" per "1073741824"; undefined when either is malformed. */
export function parseUnitPrice(amount: string, perQuantity: string): UnitPrice | undefined {
  const match = decimal.exec(amount);
  if (match === null || !positive.test(perQuantity)) return undefined;
  const [, sign = "", whole = "0", fraction = ""] = match;
  const magnitude = BigInt(whole + fraction);
  return {
    numerator: sign === "-" ? -magnitude : magnitude,
    denominator: 10n ** BigInt(fraction.length) * BigInt(perQuantity),
  };
}

/** The integer nearest to numerator / denominator; of two equally near the even one. The denominator is positive. */
export function roundHalfEven(numerator: bigint, denominator: bigint): bigint {
  let quotient = numerator / denominator; // towards zero
  let remainder = numerator % denominator;
  if (remainder < 0n) {
    quotient -= 1n;
    remainder += denominator;
  }
  const twice = 2n * remainder;
  const up = twice > denominator || (twice === denominator && quotient % 2n !== 0n);
  return up ? quotient + 1n : quotient;
}

/** The price of all parts together in units of 10^-exponent: summed exactly, rounded once. */
export function rate(parts: readonly RatedPart[], exponent: number): bigint {
  let numerator = 0n;
  let denominator = 1n;
  for (const { quantity, price } of parts) {
    if (price.denominator === denominator) {
      numerator += quantity * price.numerator;
      continue;
    }
    numerator = numerator * price.denominator + quantity * price.numerator * denominator;
    denominator *= price.denominator;
  }
  return roundHalfEven(numerator * 10n ** BigInt(exponent), denominator);
}

/** `units` of 10^-exponent as a decimal number with all its digits: 42 with exponent 3 is "0.042". */
export function formatAmount(units: bigint, exponent: number): string {
  const sign = units < 0n ? "-" : "";
  const digits = (units < 0n ? -units : units).toString().padStart(exponent + 1, "0");
  const point = digits.length - exponent;
  return exponent === 0 ? sign + digits : `${sign}${digits.slice(0, point)}.${digits.slice(point)}`;
}
