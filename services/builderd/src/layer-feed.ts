import type { Digest, ResolvedImage } from "@unkey/oci";
import type { Assembler, RootfsInFile, RootfsOptions } from "./worker/image-workers.ts";

/** Gives the layers of an image to its assembler, lowest first, as soon as they and all below them are here. */
export class LayerFeed implements AsyncDisposable {
  readonly #layers: ResolvedImage["layers"];
  readonly #startAssembler: () => Promise<Assembler>;
  readonly #directories = new Map<Digest, string>();
  #starting: Promise<Assembler> | undefined;
  #assembler: Assembler | undefined;
  /** Layers that the assembler was told. */
  #told = 0;

  constructor(layers: ResolvedImage["layers"], startAssembler: () => Promise<Assembler>) {
    this.#layers = layers;
    this.#startAssembler = startAssembler;
  }

  /** Starts the process, once. Its failure is told by `write`. */
  start(): void {
    if (this.#starting !== undefined) return;
    this.#starting = this.#startAssembler();
    void this.#tellWhenStarted(this.#starting);
  }

  /** The layer's directory of that name is complete. */
  here(digest: Digest, directory: string): void {
    this.#directories.set(digest, directory);
    this.#tell();
  }

  /** When all layers are here. Throws what the assembler throws. */
  async write(options: RootfsOptions): Promise<RootfsInFile> {
    this.start();
    const assembler = await this.#starting;
    this.#assembler = assembler;
    this.#tell();
    if (assembler === undefined || this.#told < this.#layers.length)
      throw new Error("a layer of the image is not here");
    return assembler.write(options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#starting?.then(
      (assembler) => assembler[Symbol.asyncDispose](),
      () => undefined,
    );
  }

  async #tellWhenStarted(starting: Promise<Assembler>): Promise<void> {
    this.#assembler = await starting.catch(() => undefined);
    this.#tell();
  }

  #tell(): void {
    for (; this.#told < this.#layers.length; this.#told++) {
      const layer = this.#layers[this.#told];
      const directory = layer && this.#directories.get(layer.descriptor.digest);
      if (layer === undefined || directory === undefined || this.#assembler === undefined) return;
      this.#assembler.add({ digest: layer.descriptor.digest, diffId: layer.diffId, directory });
    }
  }
}
