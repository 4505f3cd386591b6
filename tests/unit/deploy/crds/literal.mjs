// What TypeScript finds wrong with a source in this folder: types compiled against a literal say what may be there.
import { fileURLToPath } from "node:url";
import ts from "typescript";

export function diagnostics(source) {
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
