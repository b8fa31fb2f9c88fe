import assert from "node:assert/strict";
import { test } from "node:test";
import { tscFromCpuInfo, tscFromKernelLog } from "./tsc.ts";

test("the kernel's own measurement is taken, the finest there is", () => {
  const detected = "6,112,65,-;tsc: Detected 2596.148 MHz processor\n";
  assert.equal(tscFromKernelLog(detected), 2_596_148);
  assert.equal(tscFromKernelLog(`${detected}6,1,1,-;tsc: Detected 2600.000 MHz TSC\n`), 2_600_000);
  const refined = "6,500,9,-;tsc: Refined TSC clocksource calibration: 2596.099 MHz\n";
  assert.equal(tscFromKernelLog(`${detected}${refined}`), 2_596_099);
  assert.equal(tscFromKernelLog("tsc: Fast TSC calibration using PIT"), undefined);
});

test("else what the processor is sold as, its nominal speed, its speed of the moment", () => {
  const intel = "model name\t: Intel(R) Xeon(R) CPU @ 2.20GHz\ncpu MHz\t\t: 3100.123\n";
  const amd = "model name\t: AMD EPYC\ncpu MHz\t\t: 2596.148\n";
  assert.equal(tscFromCpuInfo(intel, 9999), 2_200_000);
  assert.equal(tscFromCpuInfo(amd, 2450), 2_450_000);
  assert.equal(tscFromCpuInfo(amd, undefined), 2_596_148);
  assert.equal(tscFromCpuInfo("", undefined), undefined);
});
