/**
 * Runs `body` for every item, at most `limit` at a time. The first failure keeps further items from starting, waits for
 * those that run and is thrown.
 */
export async function inParallel<T>(
  items: readonly T[],
  limit: number,
  body: (item: T) => Promise<void>,
): Promise<void> {
  const failures: unknown[] = [];
  const queue = items.values();
  const work = async () => {
    for (const item of queue) {
      if (failures.length > 0) return;
      try {
        await body(item);
      } catch (error) {
        failures.push(error);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, work));
  if (failures.length > 0) throw failures[0];
}
