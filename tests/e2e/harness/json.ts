/** The parts of the command line's --json output that tests read. */
export interface VmJson {
  readonly vmId: string;
  readonly state: string;
}

export interface UsageLineJson {
  readonly vmId: string;
  readonly complete?: boolean;
  readonly quantities: Readonly<
    Record<"cpuTimeUs" | "netInBytes" | "netOutBytes" | "diskReadBytes" | "diskWriteBytes", string>
  >;
  readonly gaps?: readonly { readonly countersBridged?: boolean }[];
}

export interface UsageJson {
  readonly report: { readonly tenantId: string; readonly vms?: readonly UsageLineJson[] };
}
