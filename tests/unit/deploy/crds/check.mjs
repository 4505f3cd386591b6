// Reads a JSON list of custom resources from stdin; prints what is wrong with each, a line a finding.
// The schemas say what must be there and how it looks; the types, compiled against each resource as a literal, what may be there.
import { readFileSync } from "node:fs";
import ts from "typescript";
import { diagnostics } from "./literal.mjs";

const MODULES = {
  ScaledObject: "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
  ServiceMonitor: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
  PodMonitor: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
};

const resources = JSON.parse(readFileSync(0, "utf8"));
let source = "";
for (const [number, resource] of resources.entries()) {
  const module = MODULES[resource.kind];
  if (module === undefined) {
    console.log(`${resource.kind}: no schema of this kind is known`);
    continue;
  }
  const { [resource.kind]: Model } = await import(module);
  try {
    new Model(resource).validate();
  } catch (error) {
    console.log(`${resource.kind} ${resource.metadata.name}: ${error.message}`);
  }
  source += `import type { I${resource.kind} as Kind${number} } from "${module}";\n`;
  source += `export const resource${number}: Kind${number} = ${JSON.stringify(resource)};\n`;
}
for (const finding of diagnostics(source)) {
  console.log(ts.flattenDiagnosticMessageText(finding.messageText, " "));
}
