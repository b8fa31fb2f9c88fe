export {
  acceptedActions,
  type VmAction,
  type VmEvent,
  type VmHappening,
  type VmState,
  vmStates,
  vmTransitions,
} from "./vm-state.ts";
