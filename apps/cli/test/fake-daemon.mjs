// A daemon as small as one can be: it keeps the conventions that the supervisor relies on (address file, /health, exit on
// SIGTERM) and does nothing. What it shall do wrong stands in a file, read at each start. Plain JavaScript, to start fast.
import { appendFileSync, existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";

const { FAKE_NAME: name, FAKE_ADDRESS_FILE: addressFile, FAKE_DIR: dir, FAKE_PORT: port = "0" } = process.env;
const note = (event) => appendFileSync(`${dir}/events`, `${name} ${event} ${process.pid}\n`);
const behaviour = existsSync(`${dir}/${name}.json`) ? JSON.parse(readFileSync(`${dir}/${name}.json`, "utf8")) : {};
note("start");
if (behaviour.exitCode !== undefined) {
  process.stderr.write(behaviour.complaint ?? "");
  process.exit(behaviour.exitCode);
}
process.on("SIGTERM", () => {
  if (behaviour.ignoresStop) return;
  note("stop");
  rmSync(addressFile, { force: true });
  process.exit(0);
});
const server = createServer((_request, response) => {
  const ready = !existsSync(`${dir}/${name}.unready`);
  response.end(
    JSON.stringify({ status: ready ? "ok" : "degraded", ready, uptimeSeconds: 1, dependencies: {}, layers: {} }),
  );
});
server.listen(Number(port), "127.0.0.1", () => {
  const addresses = { health: `127.0.0.1:${server.address().port}` };
  writeFileSync(`${addressFile}.tmp`, JSON.stringify({ service: name, pid: process.pid, addresses }));
  renameSync(`${addressFile}.tmp`, addressFile);
  process.stdout.write(`${JSON.stringify({ level: "info", message: "started" })}\n`);
});
