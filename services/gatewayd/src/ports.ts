export interface ProbeTarget {
  readonly host: string;
  readonly port: number;
  /** Empty for a TCP connection. */
  readonly httpPath: string;
  readonly timeoutMs: number;
}

export type ProbeAnswer = { readonly healthy: true } | { readonly healthy: false; readonly because: string };

/** Asks an app once whether it serves. An app that does not is an answer, never an error. */
export type Probe = (target: ProbeTarget, signal: AbortSignal) => Promise<ProbeAnswer>;

/** Where ingress sends requests. */
export interface RouteTable {
  /** Takes over what the database says now. */
  refresh(): Promise<void>;
  /** Resolves when no request runs on the VMs any more, or after `withinMs`, cutting off what is left. */
  drain(vmIds: readonly string[], withinMs: number, signal: AbortSignal): Promise<void>;
}
