// Reads a JSON list of custom resources from stdin; prints what is wrong with each, a line a finding.
// The schemas say what must be there and how it looks; the types, compiled against each resource as a literal, what may be there.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const MODULES = {
  ScaledObject: "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
  ServiceMonitor: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
  PodMonitor: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
};

function misspelt(source) {
  const name = fileURLToPath(new URL("resources.ts", import.meta.url));
  const options = {
    strict: true, noEmit: true, skipLibCheck: true, target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler,
  };
  const host = ts.createCompilerHost(options);
  const read = host.getSourceFile.bind(host);
  host.getSourceFile = (file, ...rest) =>
    file === name ? ts.createSourceFile(file, source, options.target) : read(file, ...rest);
  host.fileExists = (file) => file === name || ts.sys.fileExists(file);
  return ts.getPreEmitDiagnostics(ts.createProgram([name], options, host));
}

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
for (const finding of misspelt(source)) {
  console.log(ts.flattenDiagnosticMessageText(finding.messageText, " "));
}
