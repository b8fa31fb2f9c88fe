/** Answers that come from the gateway, not from an app. */
export interface Refusal {
  readonly status: number;
  readonly title: string;
  readonly nextStep: string;
}

export const refusals = {
  unknownHost: (host: string): Refusal => ({
    status: 404,
    title: `No app answers at ${host}.`,
    nextStep: "List the apps and their addresses with `unkey apps`.",
  }),
  unknownApp: (app: string): Refusal => ({
    status: 404,
    title: `There is no app named ${app} here.`,
    nextStep: `Deploy it with \`unkey deploy <image> --app ${app}\`.`,
  }),
  notDeployed: (app: string): Refusal => ({
    status: 503,
    title: `The app ${app} has no release that serves yet.`,
    nextStep: "Look at its deployment with `unkey deployments`.",
  }),
  stopped: (app: string): Refusal => ({
    status: 503,
    title: `The app ${app} is stopped.`,
    nextStep: `Start it with \`unkey start ${app}\`, or deploy it again.`,
  }),
  busy: (app: string): Refusal => ({
    status: 503,
    title: `The app ${app} has more requests under way than it can take.`,
    nextStep: "Try again in a moment.",
  }),
  dead: (app: string): Refusal => ({
    status: 502,
    title: `The app ${app} does not answer.`,
    nextStep: `Read its output with \`unkey logs ${app}\`.`,
  }),
  late: (app: string): Refusal => ({
    status: 504,
    title: `The app ${app} did not answer in time.`,
    nextStep: `Read its output with \`unkey logs ${app}\`.`,
  }),
  tooLarge: (limitBytes: number): Refusal => ({
    status: 413,
    title: `The request's body is larger than ${limitBytes} bytes.`,
    nextStep: "Send less at once.",
  }),
  bodyStalled: (): Refusal => ({
    status: 408,
    title: "The request's body did not arrive in time.",
    nextStep: "Send it again.",
  }),
  misdirected: (): Refusal => ({
    status: 421,
    title: "The connection was opened for another host name.",
    nextStep: "Open a new connection for this host name.",
  }),
  malformed: (what: string): Refusal => ({ status: 400, title: what, nextStep: "Correct the request." }),
  method: (method: string): Refusal => ({
    status: 405,
    title: `${method} is not passed on to apps.`,
    nextStep: "Use another method.",
  }),
  stopping: (): Refusal => ({ status: 503, title: "The gateway is stopping.", nextStep: "Try again in a moment." }),
} as const;

/** The refusal as a page for people, or as text for programs. */
export function renderRefusal(refusal: Refusal, accept: string | undefined): { type: string; body: string } {
  const { status, title, nextStep } = refusal;
  if (!accept?.includes("text/html")) return { type: "text/plain; charset=utf-8", body: `${title}\n${nextStep}\n` };
  const body = `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>${status}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem}code{background:#8882;padding:0 .2em}</style>
<h1>${escapeHtml(title)}</h1>
<p>${escapeHtml(nextStep).replaceAll(/`([^`]+)`/g, "<code>$1</code>")}</p>
</html>
`;
  return { type: "text/html; charset=utf-8", body };
}

function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}
