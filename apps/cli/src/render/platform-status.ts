import type { ObservedDaemon, ObservedPlatform } from "../dev/observe.ts";
import { counted, duration } from "./quantities.ts";
import { renderTable } from "./table.ts";
import { plain, styled, type Terminal } from "./terminal.ts";

const endpointOrder = ["rpc", "ingress", "health"];

/** Each daemon with where it listens; below that what is wrong or inactive, because nothing may be implied. */
export function renderPlatformStatus(terminal: Terminal, observed: ObservedPlatform): string {
  const columns = [
    { title: "SERVICE" },
    { title: "STATE" },
    { title: "PID", align: "right" },
    { title: "UP", align: "right" },
    { title: "LISTENS" },
  ] as const;
  const rows = observed.daemons.map((daemon) => ({
    cells: [
      daemon.name,
      daemon.state,
      String(daemon.pid ?? "-"),
      daemon.uptimeMs === undefined ? "-" : duration(daemon.uptimeMs),
      Object.entries(daemon.addresses)
        .toSorted(([a], [b]) => endpointOrder.indexOf(a) - endpointOrder.indexOf(b))
        .map(([endpoint, address]) => `${endpoint} ${address}`)
        .join("  "),
    ],
  }));
  const notes = observed.daemons.flatMap(notesOf).map((note) => `${styled(terminal, "yellow", "!")} ${plain(note)}\n`);
  const someRun = observed.daemons.some(({ state }) => state !== "not running");
  if (!observed.supervised && someRun) {
    notes.push(`${styled(terminal, "yellow", "!")} no supervisor runs: \`unkey dev up\` adopts the daemons\n`);
  }
  return `${renderTable(terminal, columns, rows)}${notes.join("")}${styled(terminal, "dim", `Home ${observed.home}, logs ${observed.logs}.`)}\n`;
}

function notesOf({ name, health, lastExit, restarts }: ObservedDaemon): string[] {
  const failed = Object.entries(health?.dependencies ?? {}).filter(([, { ok }]) => !ok);
  const inactive = Object.entries(health?.layers ?? {}).filter(([, { active }]) => !active);
  // Layers that are inactive for the same reason share a line.
  const byReason = Map.groupBy(inactive, ([, { detail }]) => detail ?? "");
  return [
    ...(restarts > 0 && lastExit !== undefined
      ? [`${name} was restarted (${counted(restarts, "time")}); before that: ${lastExit}`]
      : []),
    ...failed.map(([dependency, { error }]) => `${name}: ${dependency}: ${error ?? "does not answer"}`),
    ...[...byReason].map(([reason, layers]) => {
      const names = layers.map(([layer]) => layer).join(", ");
      return `${name}: inactive: ${names}${reason === "" ? "" : ` (${reason})`}`;
    }),
  ];
}
