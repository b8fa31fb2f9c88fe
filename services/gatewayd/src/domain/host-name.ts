import { isAppName } from "@unkey/base";

/** The name in a Host header or :authority without its port, in lower case; undefined when it is not a host name. */
export function hostOfAuthority(authority: string): string | undefined {
  const host = /^([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)\.?(?::\d{1,5})?$/.exec(authority)?.[1];
  return host === undefined || host.length > 253 ? undefined : host.toLowerCase();
}

/** The app that `host` names under `domain`: exactly one label more. */
export function appOfHost(host: string, domain: string): string | undefined {
  if (!host.endsWith(`.${domain}`)) return undefined;
  const name = host.slice(0, -domain.length - 1);
  return isAppName(name) ? name : undefined;
}
