// Generates greedily with transformers.js: node generate.mjs FOLDER TOKENS PROMPTS [MODEL_FILE_NAME]
//
// FOLDER is laid out as on a model hub. PROMPTS is a JSON list of batches, each a list of prompts, padded on the left
// where they are shorter. Prints the tokens of each batch, and the bytes that the caches take a token.
import path from 'node:path';
import { env, AutoModelForCausalLM, Tensor } from '@huggingface/transformers';

const [folder, count, prompts, model_file_name] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder)) + '/';

const integers = (rows) => new Tensor('int64', BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);

const model = await AutoModelForCausalLM.from_pretrained(path.basename(folder), {
    dtype: 'fp32', device: 'cpu', local_files_only: true, ...(model_file_name ? { model_file_name } : {}),
});
const results = [];
for (const batch of JSON.parse(prompts)) {
    const longest = Math.max(...batch.map((p) => p.length));
    const pads = batch.map((p) => Array(longest - p.length).fill(0));
    const made = await model.generate({
        input_ids: integers(batch.map((p, i) => [...pads[i], ...p])),
        attention_mask: integers(batch.map((p, i) => [...pads[i], ...p.map(() => 1)])),
        max_new_tokens: +count, min_new_tokens: +count, do_sample: false, return_dict_in_generate: true,
    });
    const caches = Object.entries(made.past_key_values).filter(([name]) => name.startsWith('past_key_values.'));
    const bytes = caches.reduce((sum, [, c]) => sum + c.data.byteLength / (c.dims[0] * c.dims[2]), 0);
    results.push({ tokens: made.sequences.tolist().map((row) => row.map(Number)), cache_bytes: bytes });
}
console.log(JSON.stringify(results));
await model.dispose();
