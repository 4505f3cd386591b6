// Follows the state of the fleet, and reports in words why images can't be generated.

import { fetchJson, followEvents, pause } from "./api.js";
import { showFleet, showFleetUnavailable } from "./fleet.js";
import { setCondition } from "./status.js";

const RETRY_MS = [500, 1000, 2000, 5000];
const BROKER_LOST = "The broker does not answer. Jobs are kept, and continue when it is back.";
const NO_GPU = "No GPU is connected. Requests wait until one is.";
const NONE_READY = "No GPU is ready. Requests wait until one is.";
const NO_MODEL = "No model available. The connected GPUs serve none that you may use.";

/** Follows the stream of the fleet until it is aborted. */
export class FleetWatch {
  #actions;
  #served = "";

  /** `actions`: `answered()` after each event, `models(listed)` after changes, `failed(error)`. */
  constructor(actions) {
    this.#actions = actions;
  }

  /** Load the models again at the next event. */
  reset() {
    this.#served = "";
  }

  /** Follow the stream; connect again until the signal is aborted or the key is rejected. */
  async follow(signal) {
    for (let failures = 0; ; failures += 1) {
      try {
        await followEvents("fleet/events", (_, fleet) => {
          failures = 0;
          this.#show(fleet);
        }, signal);
      } catch (error) {
        if (signal.aborted) return;
        showFleetUnavailable();
        this.#actions.failed(error);
        if (error.status === 401 || error.status === 403) return;
      }
      await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)], signal);
    }
  }

  #show(fleet) {
    this.#actions.answered();
    showFleet(fleet);
    const lost = fleet.lost_for_seconds !== null;
    setCondition("broker", lost ? BROKER_LOST : null, "The broker is back.");
    const ready = fleet.gpus.some(({ state }) => state === "ready");
    const none = fleet.gpus.length ? NONE_READY : NO_GPU;
    setCondition("gpu", lost || ready ? null : none, "A GPU is ready.");
    const served = JSON.stringify([fleet.models, fleet.default_model, fleet.models_mark]);
    if (!lost && fleet.models && served !== this.#served) this.#loadModels(served, fleet.gpus.length > 0);
  }

  async #loadModels(served, hasGpus) {
    this.#served = served;
    try {
      const { data } = await fetchJson("v1/models");
      setCondition("model", hasGpus && !data.length ? NO_MODEL : null, "A model is available.");
      this.#actions.models(data);
    } catch (error) {
      this.#served = "";
      this.#actions.failed(error);
    }
  }
}
