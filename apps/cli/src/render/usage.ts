import type { Money, UsageLine } from "@unkey/api/billing";
import type { Usage } from "@unkey/api/gateway";
import { formatBytes } from "@unkey/base";
import { gibSeconds, instant, vcpuSeconds } from "./quantities.ts";
import { type Row, renderTable } from "./table.ts";
import { plain, styled, type Terminal } from "./terminal.ts";

/** A report as a table: each app, below it its VMs, at the end the total and how far the report reaches. */
export function renderUsage(terminal: Terminal, usage: Usage): string {
  const { report, appNames } = usage;
  if (report === undefined || report.apps.length === 0) {
    return "No usage in this period yet: a minute is shown when it has ended, a stopped VM at once.\n";
  }
  const columns = [
    { title: "APP / VM", shrinks: true, keepsEnd: true },
    { title: "VCPU·S", align: "right" },
    { title: "MEM GIB·S", align: "right" },
    { title: "DISK GIB·S", align: "right" },
    { title: "NET IN", align: "right" },
    { title: "NET OUT", align: "right" },
    { title: "SAMPLES", align: "right" },
    { title: "GAPS", align: "right" },
    { title: "AMOUNT", align: "right" },
  ] as const;
  const rows: Row[] = report.apps.flatMap((app) => [
    { cells: cellsOf(appNames[app.appId] ?? app.appId, app), style: "bold" },
    ...report.vms
      .filter((vm) => vm.appId === app.appId)
      .map((vm) => ({ cells: cellsOf(`  ${vm.vmId}${vm.complete ? "" : " *"}`, vm) })),
  ]);
  rows.push({ cells: ["total", "", "", "", "", "", "", "", money(report.total)], style: "bold" });
  const everythingEnded = report.vms.every((vm) => vm.complete);
  const reach = everythingEnded ? "complete" : `complete up to ${instant(report.asOfMs)}`;
  const notes = [
    `From ${instant(report.fromMs)} to ${instant(report.toMs)}, ${reach}. Price book ${plain(report.priceBookId)}.`,
    ...(everythingEnded ? [] : ["* still runs, or its last windows are on their way."]),
  ];
  return renderTable(terminal, columns, rows) + notes.map((note) => `${styled(terminal, "dim", note)}\n`).join("");
}

function cellsOf(name: string, line: UsageLine): string[] {
  const used = line.quantities;
  return [
    name,
    vcpuSeconds(used?.cpuTimeUs ?? 0n),
    gibSeconds(used?.memoryByteMs ?? ""),
    gibSeconds(used?.diskByteMs ?? ""),
    formatBytes(used?.netInBytes ?? 0n),
    formatBytes(used?.netOutBytes ?? 0n),
    `${line.samplesSeen}/${line.samplesExpected}`,
    String(line.gaps.length),
    money(line.amount),
  ];
}

function money(amount: Money | undefined): string {
  return amount === undefined ? "-" : `${amount.amount} ${amount.currency}`;
}
