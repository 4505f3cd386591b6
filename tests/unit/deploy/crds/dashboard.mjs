// Reads a Grafana dashboard as JSON from stdin; prints what Grafana's published types find wrong with it, a line a finding.
import { readFileSync } from "node:fs";
import ts from "typescript";
import { diagnostics } from "./literal.mjs";

const source =
  'import type { Dashboard } from "@grafana/schema";\n' +
  `export const dashboard: Dashboard = ${readFileSync(0, "utf8")};\n`;
for (const finding of diagnostics(source)) {
  console.log(ts.flattenDiagnosticMessageText(finding.messageText, " "));
}
