/** Parent to child, once, over the channel between them: nothing of it appears in argv or the environment. */
export interface ChdbStart {
  readonly kind: "start";
  readonly dataDir: string;
  readonly password: string;
}

/** Child to parent, once. */
export type ChdbAnswer =
  | { readonly kind: "listening"; readonly port: number }
  | { readonly kind: "failed"; readonly message: string };

/** The only user of the child's HTTP interface. */
export const chdbUser = "unkey";
