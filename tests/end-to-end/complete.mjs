// Lets llama.cpp go on after prompts, always with the likeliest token.
// Arguments: a model, a LoRA file or nothing, and a JSON list of prompts. Prints a JSON list of texts.
import {getLlama, LlamaCompletion} from "node-llama-cpp";

const [modelPath, lora, prompts] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 2});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 256, ...(lora ? {lora} : {})});
const sequence = context.getSequence();
const completion = new LlamaCompletion({contextSequence: sequence});
const texts = [];
for (const prompt of JSON.parse(prompts)) {
    await sequence.clearHistory();
    texts.push(await completion.generateCompletion(prompt, {maxTokens: 12, temperature: 0}));
}
console.log(JSON.stringify(texts));
process.exit(0);
