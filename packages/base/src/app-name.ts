/** An app's name is a label of its host name: at most 63 of a-z, 0-9 and dashes, a letter first and no dash last. */
export function isAppName(text: string): boolean {
  return /^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(text);
}

/** The app's name that is nearest to what an image or a directory is called; undefined when nothing of it can be one. */
export function appNameFrom(text: string): string | undefined {
  const name = text
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, "-")
    .replace(/^[^a-z]+/, "")
    .slice(0, 63)
    .replace(/-+$/, "");
  return name === "" ? undefined : name;
}
