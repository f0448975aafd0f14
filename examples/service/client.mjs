// Asks the service for one digit, drawn here: node examples/service/client.mjs http://127.0.0.1:8440
// The same modules run in the page; each party gets a share of the picture, and only this program adds the answers.

import { Client, modelOf } from "../../securemodel/page/static/client.js";
import { fromPicture } from "../../securemodel/page/static/recipe.js";

const address = process.argv[2] ?? "http://127.0.0.1:8440";
// Take service.json from somebody you trust: it says who gets the shares.
const service = await (await fetch(`${address}/service.json`)).json();
const model = modelOf(service, "lenet5");

const pixels = new Float64Array(28 * 28); // 0 is paper, 255 is ink: a stroke from top to bottom is a one
for (let row = 4; row < 24; row++) pixels.fill(255, row * 28 + 13, row * 28 + 15);

const { outputs: [scores], run } = await new Client(service).infer("lenet5", fromPicture(model.card, pixels, [1, 28, 28]));
const values = Array.from(scores.values);
console.log(`answer ${model.card.labels[values.indexOf(Math.max(...values))]}, computed in run ${run}`);
