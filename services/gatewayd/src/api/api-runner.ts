import type { DescMethod, DescService, Message } from "@bufbuild/protobuf";
import { create } from "@bufbuild/protobuf";
import {
  createContextValues,
  createHandlerContext,
  type HandlerContext,
  type Interceptor,
  type StreamRequest,
  type StreamResponse,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";

/** Handlers by the method's local name, as `ServiceImpl` has them. */
export type Implementation = Readonly<Record<string, (input: never, context: HandlerContext) => unknown>>;

export interface ApiRunnerOptions {
  readonly service: DescService;
  readonly implementation: Implementation;
  readonly gate: (context: HandlerContext) => Promise<void>;
  readonly interceptors: readonly Interceptor[];
  readonly shutdownSignal: AbortSignal;
}

/**
 * Runs methods of a service for a protocol that Connect does not know, behind the same gate and interceptors and with
 * the same handlers.
 */
export class ApiRunner {
  readonly #options: ApiRunnerOptions;

  constructor(options: ApiRunnerOptions) {
    this.#options = options;
  }

  /** The context of one call; abort it when the call is over. */
  context(method: DescMethod, request: { verb: string; url: string; headers: Headers; signal: AbortSignal }) {
    const { service, shutdownSignal } = this.#options;
    return createHandlerContext({
      service,
      method,
      protocolName: "rest",
      requestMethod: request.verb,
      url: request.url,
      requestHeader: request.headers,
      requestSignal: request.signal,
      shutdownSignal,
      contextValues: createContextValues(),
    });
  }

  /** Everything that is decided before the body is read. */
  gate(context: HandlerContext): Promise<void> {
    return this.#options.gate(context);
  }

  async unary(context: HandlerContext, message: Message): Promise<Message> {
    const response = await this.#invoke(context, { ...common(context), stream: false, message } as UnaryRequest);
    return response.message as Message;
  }

  async serverStream(context: HandlerContext, message: Message): Promise<AsyncIterable<Message>> {
    const messages = once(message);
    const response = await this.#invoke(context, {
      ...common(context),
      stream: true,
      message: messages,
    } as StreamRequest);
    return response.message as AsyncIterable<Message>;
  }

  async clientStream(context: HandlerContext, messages: AsyncIterable<Message>): Promise<Message> {
    const response = await this.#invoke(context, {
      ...common(context),
      stream: true,
      message: messages,
    } as StreamRequest);
    for await (const message of response.message as AsyncIterable<Message>) return message;
    throw new Error(`${context.method.name} answered without a message`);
  }

  #invoke(context: HandlerContext, request: UnaryRequest | StreamRequest): Promise<UnaryResponse | StreamResponse> {
    const { interceptors } = this.#options;
    const handler = async (final: UnaryRequest | StreamRequest) => this.#handle(context, final);
    return interceptors.reduceRight((next, interceptor) => interceptor(next), handler)(request);
  }

  async #handle(
    context: HandlerContext,
    request: UnaryRequest | StreamRequest,
  ): Promise<UnaryResponse | StreamResponse> {
    const { method } = request;
    const handler = this.#options.implementation[method.localName];
    if (!handler) throw new Error(`no handler for ${method.name}`);
    const inner = { ...context, signal: request.signal, requestHeader: request.header };
    const answer = {
      service: context.service,
      method,
      header: context.responseHeader,
      trailer: context.responseTrailer,
    };
    const input =
      request.stream && method.methodKind === "server_streaming" ? await only(request.message) : request.message;
    const result = handler(input as never, inner);
    const output = (value: unknown) => create(method.output, value as never);
    if (!request.stream) return { ...answer, stream: false, message: output(await result) } as UnaryResponse;
    const messages =
      method.methodKind === "server_streaming"
        ? mapped(result as AsyncIterable<unknown>, output)
        : once(output(await result));
    return { ...answer, stream: true, message: messages } as StreamResponse;
  }
}

function common(context: HandlerContext) {
  return {
    service: context.service,
    method: context.method,
    requestMethod: context.requestMethod,
    url: context.url,
    signal: context.signal,
    header: context.requestHeader,
    contextValues: context.values,
  };
}

async function* once<T>(value: T): AsyncGenerator<T> {
  yield value;
}

async function* mapped<T, R>(values: AsyncIterable<T>, map: (value: T) => R): AsyncGenerator<R> {
  for await (const value of values) yield map(value);
}

async function only<T>(values: AsyncIterable<T>): Promise<T> {
  for await (const value of values) return value;
  throw new Error("a stream of one message held none");
}
