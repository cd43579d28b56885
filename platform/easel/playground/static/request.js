// What is sent, and the same call as curl and as Python. Knows no page.

export const COMPLETION_TOKENS = 256;

export function path(mode) {
  return mode === "completion" ? "/v1/completions" : "/v1/chat/completions";
}

// `parameters`: numbers, or null for what the service shall decide; `easel`: likewise an object.
export function makeBody(mode, model, input, parameters, progress) {
  const body = { model };
  if (mode === "completion") body.prompt = input;
  else body.messages = mode === "chat" ? input : [{ role: "user", content: input }];
  const max = parameters.max_tokens ?? (mode === "completion" ? COMPLETION_TOKENS : null);
  if (max !== null) body.max_tokens = max;
  if (parameters.temperature !== null) body.temperature = parameters.temperature;
  if (parameters.seed !== null) body.seed = parameters.seed;
  if (parameters.easel) body.easel = parameters.easel;
  body.stream = true;
  body.stream_options = progress ? { include_usage: true, include_progress: true } : { include_usage: true };
  return body;
}

// The key itself never gets into what is shown.
export function asCurl(mode, body, origin, keyed) {
  const json = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ").replaceAll("'", "'\\''");
  const auth = keyed ? ` \\\n  -H "Authorization: Bearer $EASEL_API_KEY"` : "";
  return `curl -N ${origin}${path(mode)} \\\n  -H 'Content-Type: application/json'${auth} \\\n  -d '${json}'`;
}

export function asPython(mode, body, origin, keyed) {
  const method = mode === "completion" ? "completions" : "chat.completions";
  const text = mode === "completion" ? "chunk.choices[0].text" : 'chunk.choices[0].delta.content or ""';
  const key = keyed ? 'os.environ["EASEL_API_KEY"]' : '"unused"';
  const lines = keyed ? ["import os", ""] : [];
  lines.push("from openai import OpenAI", "", `client = OpenAI(base_url="${origin}/v1", api_key=${key})`, "");
  lines.push(`stream = client.${method}.create(`);
  const { easel, ...known } = body; // what the SDK has no parameter for goes beside them
  for (const [name, value] of Object.entries(known)) lines.push(`    ${name}=${literal(value)},`);
  if (easel) lines.push(`    extra_body=${literal({ easel })},`);
  lines.push(")", "for chunk in stream:", "    if chunk.choices:");
  lines.push(`        print(${text}, end="", flush=True)`);
  if (body.stream_options.include_progress) {
    lines.push("    elif hasattr(chunk, \"easel\"):", '        print(chunk.easel["progress"])  # what changed on a canvas');
  }
  return lines.join("\n");
}

function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item)}`).join(", ")}}`;
}
