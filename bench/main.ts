/**
 * `npm run bench -- <name>…`: runs the named benches, each a file of this folder that exports `run`. One JSON line per
 * figure on stdout, everything else on stderr; exits 1 when a figure misses its goal.
 */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Bench } from "./figure.ts";

const names = process.argv.slice(2);
const available = readdirSync(import.meta.dirname)
  .filter((file) => file.endsWith(".ts") && !["main.ts", "figure.ts"].includes(file))
  .map((file) => file.slice(0, -3));
const unknown = names.filter((name) => !existsSync(join(import.meta.dirname, `${name}.ts`)));
if (names.length === 0 || unknown.length > 0) {
  console.error(`usage: npm run bench -- <name>…; there are: ${available.join(", ")}`);
  process.exit(2);
}

let missed = false;
for (const name of names) {
  const bench = (await import(`./${name}.ts`)) as Bench;
  for await (const figure of bench.run()) {
    console.log(
      JSON.stringify({
        name: figure.name,
        value: figure.value,
        unit: figure.unit,
        goal: figure.goal,
        ok: figure.value <= figure.goal,
      }),
    );
    missed ||= figure.value > figure.goal;
  }
}
process.exit(missed ? 1 : 0);
