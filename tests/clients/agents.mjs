// @openai/agents-realtime (node) over /v1/realtime: node agents.mjs ws://127.0.0.1:7860/v1/realtime
import fs from 'node:fs';
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from '@openai/agents-realtime';

const role = 'You work for First Neuron Bank and your name is Sanni.';
const agent = new RealtimeAgent({ name: 'bank', instructions: role, voice: 'nano-f' });
const transport = new OpenAIRealtimeWebSocket({ url: process.argv[2] + '?model=nano&seed=1' });
const session = new RealtimeSession(agent, { transport, model: 'nano' });
const seen = {}, errors = [];
let bytes = 0, interrupted = 0, history = [];
session.on('audio', (event) => { bytes += event.data.byteLength; });
session.on('audio_interrupted', () => { interrupted += 1; });
session.on('error', (event) => errors.push(JSON.stringify(event).slice(0, 300)));
session.on('transport_event', (event) => { seen[event.type] = (seen[event.type] || 0) + 1; });
session.on('history_updated', (items) => { history = items; });
await session.connect({ apiKey: 'none' });
const file = fs.readFileSync(new URL('../../examples/questions/bank.wav', import.meta.url));
const sound = Buffer.concat([Buffer.alloc(24000 * 2 * 6), file.subarray(44), Buffer.alloc(24000 * 2 * 5)]);
const began = Date.now();
for (let at = 0, number = 0; at < sound.length; at += 1920, number++) {
  session.sendAudio(new Uint8Array(sound.subarray(at, at + 1920)).buffer);
  await new Promise((done) => setTimeout(done, Math.max(0, number * 40 - (Date.now() - began))));
}
const said = history.filter((item) => item.role === 'assistant').map((item) => item.content[0]?.transcript).join(' ');
console.log(JSON.stringify({ said, seen, errors, interrupted, sound_sec: bytes / 48000 }));
session.close();
process.exit(errors.length === 0 && said.includes('Sanni') ? 0 : 1);
