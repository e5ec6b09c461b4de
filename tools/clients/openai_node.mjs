// dependencies: openai@7 zod@4
// OpenAI's client for Node: chat, its streaming helper, functions that it runs by itself, structured outputs, aborted streams.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, model] = process.argv.slice(2, 4);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Deny this: Tom has a red kite." }];
const ask = { model, messages, temperature: 0, max_tokens: 200, stop: ["beans"] };
const Place = z.object({ city: z.enum(["Rome", "Oslo"]) });

const made = await client.chat.completions.create(ask);
const text = made.choices[0].message.content;
const grown = await client.chat.completions.stream(ask).finalChatCompletion();
assert.equal(grown.choices[0].message.content, text);
let said = "", usage;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  said += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(said, text);
assert.equal(usage.total_tokens, made.usage.total_tokens);

const parsed = await client.chat.completions.parse({ ...ask, stop: null, response_format: zodResponseFormat(Place, "place") });
assert.ok(Place.parse(parsed.choices[0].message.parsed));

const tools = [zodFunction({ name: "weather", parameters: Place })];
for (const tool_choice of ["required", { type: "function", function: { name: "weather" } }]) {
  const asked = { ...ask, stop: null, tools, tool_choice, parallel_tool_calls: false };
  const [call] = (await client.chat.completions.create(asked)).choices[0].message.tool_calls;
  let pieces = 0;
  const stream = client.chat.completions.stream(asked).on("tool_calls.function.arguments.delta", () => pieces++);
  const [same] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
  assert.deepEqual([same.function.name, same.function.arguments], [call.function.name, call.function.arguments]);
  assert.ok(Place.parse(same.function.parsed_arguments) && pieces > 3, "arguments come piece by piece");
}

const called = [];
const weather = (given) => (called.push(given), "sunny");
const runner = client.chat.completions.runTools({
  ...ask, stop: null, stream: true, tool_choice: { type: "function", function: { name: "weather" } },
  tools: [{ type: "function", function: { name: "weather", function: weather, parse: JSON.parse, parameters: z.toJSONSchema(Place) } }],
});
await runner.done();
assert.ok(called.length === 1 && Place.parse(called[0]));

const response = await client.responses.create({ model, input: messages, temperature: 0, max_output_tokens: 60 });
assert.ok(response.output_text.startsWith(text));
const completion = await client.completions.create({ model, prompt: "Tom has", max_tokens: 6, temperature: 0 });
assert.ok(completion.choices[0].text);
for await (const one of client.models.list()) assert.equal(one.id, model);
await assert.rejects(client.chat.completions.create({ ...ask, not_a_field: 1 }), OpenAI.BadRequestError);
const stream = await client.chat.completions.create({ ...ask, max_tokens: 400, stream: true });
for await (const _ of stream) break;
const { version } = JSON.parse(readFileSync(new URL("node_modules/openai/package.json", import.meta.url)));
console.log("openai (Node)", version, "ok");
