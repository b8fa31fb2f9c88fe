/** A state machine as a table: from each state, the events it accepts and the state each leads to. */
export type Transitions<State extends string, Event extends string> = Readonly<
  Record<State, Readonly<Partial<Record<Event, State>>>>
>;

/** The state that `event` leads to from `state`, or undefined when the table refuses it. */
export function nextState<State extends string, Event extends string>(
  table: Transitions<State, Event>,
  state: State,
  event: Event,
): State | undefined {
  return table[state][event];
}

/** The events that `state` accepts, in the table's order: what a refusal can suggest instead. */
export function acceptedEvents<State extends string, Event extends string>(
  table: Transitions<State, Event>,
  state: State,
): Event[] {
  return Object.keys(table[state]) as Event[];
}
