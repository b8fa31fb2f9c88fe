import { hypervisorContract } from "./hypervisor.contract.ts";
import { openQemuFixture, qemuSkipReason } from "./testing/qemu-test-host.ts";

hypervisorContract("qemu", qemuSkipReason(), openQemuFixture);
