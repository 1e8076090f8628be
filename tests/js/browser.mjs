// Generates greedily with transformers.js in a browser: node browser.mjs BROWSER DEVICE TOKENS PROMPTS MODEL_FILE_NAME FOLDER...
//
// Every FOLDER is laid out as on a model hub; PROMPTS is a JSON list of batches of prompts of one length. DEVICE is wasm or
// webgpu. The page loads the library and its runtime from node_modules alone, and generates with each model in turn. Prints for
// each folder the tokens of each batch, the bytes that the caches take a token, and tokens a second; `{"missing": ...}` where the
// browser has no such device.
import { spawn } from 'node:child_process';
import { createReadStream, mkdtempSync, rmSync, statSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';

const [browser, device, count, prompts, file, ...folders] = process.argv.slice(2);
const modules = path.join(import.meta.dirname, 'node_modules');

const page = `<!doctype html><script type="importmap">{ "imports": {
    "onnxruntime-common": "/modules/onnxruntime-common/dist/esm/index.js",
    "onnxruntime-web/webgpu": "/modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs"
} }</script><script type="module">
const tell = (told) => fetch('/told', { method: 'POST', body: JSON.stringify(told) });
try {
    const { env, AutoModelForCausalLM, Tensor } = await import('/modules/@huggingface/transformers/dist/transformers.web.js');
    if (${JSON.stringify(device)} === 'webgpu' && !(await navigator.gpu?.requestAdapter())) throw { missing: 'no WebGPU adapter' };
    env.allowRemoteModels = false;
    env.allowLocalModels = true;
    env.useBrowserCache = false;
    env.localModelPath = '/models/';
    env.backends.onnx.wasm.wasmPaths = new URL('/modules/onnxruntime-web/dist/', location).href;
    const integers = (rows) => new Tensor('int64', BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);
    const told = [];
    for (let folder = 0; folder < ${folders.length}; folder++) {
        const model = await AutoModelForCausalLM.from_pretrained(String(folder), {
            dtype: 'fp32', device: ${JSON.stringify(device)}, model_file_name: ${JSON.stringify(file)},
        });
        const results = [];
        for (const batch of ${prompts}) {
            const began = performance.now();
            const made = await model.generate({
                input_ids: integers(batch), attention_mask: integers(batch.map((p) => p.map(() => 1))),
                max_new_tokens: ${+count}, min_new_tokens: ${+count}, do_sample: false, return_dict_in_generate: true,
            });
            const seconds = (performance.now() - began) / 1000;
            const caches = Object.entries(made.past_key_values).filter(([name]) => name.startsWith('past_key_values.'));
            const size = (cache) => ({ float32: 4, float16: 2, int8: 1, uint8: 1 })[cache.type] * cache.dims[1] * cache.dims[3];
            results.push({
                tokens: made.sequences.tolist().map((row) => row.map(Number)),
                cache_bytes: caches.reduce((sum, [, c]) => sum + size(c), 0),
                tokens_a_second: (batch.length * ${+count}) / seconds,
            });
        }
        told.push(results);
        await model.dispose();
    }
    await tell(told);
} catch (error) {
    await tell(error.missing ? { missing: error.missing } : { error: String(error?.stack ?? error) });
}
</script>`;

const TYPES = { '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm', '.json': 'application/json' };

// The file that a path of the page stands for.
function found(url) {
    const [, kind, first, ...rest] = decodeURIComponent(new URL(url, 'http://page').pathname).split('/');
    const beneath = kind === 'modules' ? path.join(modules, first) : kind === 'models' ? folders[+first] : undefined;
    const whole = beneath && path.join(beneath, ...rest);
    return whole && whole.startsWith(beneath) && statSync(whole, { throwIfNoEntry: false })?.isFile() ? whole : undefined;
}

const told = new Promise((resolve) => {
    const server = http.createServer((request, response) => {
        // Threads of WebAssembly need a page that is isolated from others.
        response.setHeader('Cross-Origin-Opener-Policy', 'same-origin');
        response.setHeader('Cross-Origin-Embedder-Policy', 'require-corp');
        if (request.method === 'POST') {
            let body = '';
            request.on('data', (part) => (body += part));
            return request.on('end', () => (response.end(), resolve(JSON.parse(body))));
        }
        if (request.url === '/') return response.setHeader('Content-Type', 'text/html').end(page);
        const file = found(request.url);
        if (!file) return response.writeHead(404).end();
        response.setHeader('Content-Type', TYPES[path.extname(file)] ?? 'application/octet-stream');
        response.setHeader('Content-Length', statSync(file).size);
        if (request.method === 'HEAD') return response.end();
        createReadStream(file).pipe(response);
    });
    server.listen(0, '127.0.0.1', () => open(server.address().port));
});

const profile = mkdtempSync(path.join(tmpdir(), 'browser-'));
let running;
function open(port) {
    const gpu = device === 'webgpu' ? ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan'] : ['--disable-gpu'];
    const options = ['--headless=new', '--no-sandbox', '--disable-dev-shm-usage', `--user-data-dir=${profile}`, ...gpu];
    running = spawn(browser, [...options, `http://127.0.0.1:${port}/`], { stdio: 'ignore' });
}

const result = await told;
running.kill('SIGKILL');
try {
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
} catch {
    // A process of the browser that is still ending holds a file of its profile.
}
console.log(JSON.stringify(result));
process.exit(result.error ? 1 : 0);
