import { type Platform, PlatformSchema } from "@unkey/api/gateway";
import type { Host } from "@unkey/api/metal";
import { formatBytes } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { renderFields } from "../../render/fields.ts";
import { printJson } from "../../render/messages.ts";
import { counted } from "../../render/quantities.ts";
import { plain, styled, type Terminal } from "../../render/terminal.ts";

export async function showPlatform(context: CliContext, flags: ApiFlags): Promise<void> {
  using gateway = openGateway(context, flags);
  const platform = await gateway.call((options) => gateway.client.getPlatform({}, options));
  if (flags.json) printJson(context, PlatformSchema, platform);
  else context.out.write(renderPlatform(context.out, platform));
}

export function renderPlatform(terminal: Terminal, platform: Platform): string {
  const head = renderFields(terminal, [
    ["version", platform.version],
    ["app domain", platform.appDomain],
    ["tenant", platform.tenantId],
  ]);
  return [head, ...platform.hosts.map((host) => `\n${renderHost(terminal, host)}`)].join("");
}

function renderHost(terminal: Terminal, host: Host): string {
  const { capacity, allocated } = host;
  const room =
    capacity === undefined || allocated === undefined
      ? ""
      : `${allocated.vcpuCount} of ${capacity.vcpuCount} vCPUs, ${formatBytes(allocated.memoryBytes)} of ${formatBytes(capacity.memoryBytes)} memory taken`;
  const fields = renderFields(terminal, [
    ["host", `${host.hostname} (${host.hostId}, ${host.architecture})${host.draining ? ", draining" : ""}`],
    [
      "runs",
      `${counted(host.vmCount, "VM")} with ${host.hypervisor}, acceleration ${host.acceleration}: ${host.accelerationReason}`,
    ],
    ["room", room],
  ]);
  const layers = host.layers.map(({ name, active, detail }) => {
    const mark = active ? styled(terminal, "green", "✓") : styled(terminal, "yellow", "✗ inactive:");
    return `  ${mark} ${plain(name)}${detail === "" ? "" : ` (${plain(detail)})`}\n`;
  });
  return fields + layers.join("");
}
