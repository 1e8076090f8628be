// Generates greedily from a sound with transformers.js: node whisper.mjs FOLDER TOKENS
//
// FOLDER is laid out as on a model hub, with an encoder and a merged decoder. The sound is one row of mel frequencies,
// because this library reads one at a time. Prints its tokens, and the bytes that the caches of the decoder's
// self-attentions take a token.
import path from 'node:path';
import { env, WhisperForConditionalGeneration, Tensor } from '@huggingface/transformers';

const [folder, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder)) + '/';

const model = await WhisperForConditionalGeneration.from_pretrained(path.basename(folder), {
    dtype: 'fp32', device: 'cpu', local_files_only: true,
});
const [rows, bins, frames] = [1, model.config.num_mel_bins, 24];
const sound = Float32Array.from({ length: rows * bins * frames }, (_, n) => Math.sin(n * n));
const made = await model.generate({
    inputs: new Tensor('float32', sound, [rows, bins, frames]),
    max_new_tokens: +count, min_new_tokens: +count, do_sample: false, return_dict_in_generate: true,
});
const caches = Object.entries(made.past_key_values).filter(([name]) => name.includes('.decoder.'));
const cache_bytes = caches.reduce((sum, [, c]) => sum + c.data.byteLength / (c.dims[0] * c.dims[2]), 0);
console.log(JSON.stringify([{ tokens: made.sequences.tolist().map((row) => row.map(Number)), cache_bytes }]));
await model.dispose();
