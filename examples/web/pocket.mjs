/**
 * Open a pocket folder in a web page and predict from text; nothing leaves the page.
 *
 * The pocket is read as `pocketlm.load` reads it: `pocket.json` says the task, `tokenizer.json` makes pieces,
 * `model.onnx` gives logits. Tasks of whole texts (classification, several labels, regression) are answered
 * here; those of words (tags, slots, answers) are not.
 */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

const OF_TEXTS = ["classification", "multilabel", "regression"];

/**
 * @param {string} folder Address of the pocket folder.
 * @returns {Promise<Pocket>}
 * @throws {Error} where a file is missing or the task is one of words.
 */
export async function load(folder) {
  const part = async (name) => {
    const answer = await fetch(`${folder}/${name}`);
    if (!answer.ok) throw new Error(`${folder}/${name}: ${answer.status} ${answer.statusText}; copy the whole pocket folder`);
    return answer;
  };
  const info = await (await part("pocket.json")).json();
  if (!OF_TEXTS.includes(info.task.kind)) {
    throw new Error(`the task of ${info.name} is ${info.task.kind}; in a page these are answered: ${OF_TEXTS.join(", ")}`);
  }
  const tokenizer = await (await part("tokenizer.json")).json();
  const graph = new Uint8Array(await (await part("model.onnx")).arrayBuffer());
  return new Pocket(info, new Tokenizer(tokenizer, {}), await ort.InferenceSession.create(graph));
}

/** A model with its tokenizer and task. */
export class Pocket {
  constructor(info, tokenizer, session) {
    this.info = info;
    this.labels = info.task.labels ?? [];
    this.tokenizer = tokenizer;
    this.session = session;
  }

  /**
   * Pieces of a text, or of two, cut to the pocket's `max_length`, the longer one first.
   * @param {string | [string, string]} text
   * @returns {{ids: number[], types: number[]}}
   * @throws {Error} where one text is given for two, or two for one.
   */
  encode(text) {
    const { tokenizer, info } = this;
    if (Array.isArray(text) !== info.task.pair) {
      throw new Error(`${info.name} takes ${info.task.pair ? "a pair of texts, [first, second]" : "one text"} at a time`);
    }
    const [first, second] = [text].flat().map((side) => tokenizer.tokenize(side));
    const whole = (one, other) => tokenizer.post_processor.post_process(one, other ?? null, true);
    const special = whole([], second && []).tokens.length;
    const room = info.max_length - special;
    const kept = second ? share(first.length, second.length, room) : [room];
    const { tokens, token_type_ids } = whole(first.slice(0, kept[0]), second?.slice(0, kept[1]));
    const unknown = tokenizer.model.unk_token_id;
    return { ids: tokens.map((piece) => tokenizer.token_to_id(piece) ?? unknown), types: token_type_ids };
  }

  /**
   * @param {string | [string, string]} text
   * @returns {Promise<number[]>} One number for each output, in the order of the labels.
   */
  async logits(text) {
    const { ids, types } = this.encode(text);
    const given = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types };
    const tensor = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const feed = Object.fromEntries(this.session.inputNames.map((name) => [name, tensor(given[name])]));
    return Array.from((await this.session.run(feed)).logits.data);
  }

  /**
   * @param {string | [string, string]} text
   * @returns {Promise<{label: string | null, score: number, scores: Object<string, number> | null}>} The best
   *   label and its probability; with several labels an example, the best above 0.5 or null; of a
   *   regression, the value as `score`.
   */
  async predict(text) {
    const logits = await this.logits(text);
    const { kind } = this.info.task;
    if (kind === "regression") return { label: null, score: logits[0], scores: null };
    const chances = kind === "multilabel" ? logits.map((one) => 1 / (1 + Math.exp(-one))) : softmax(logits);
    const best = chances.indexOf(Math.max(...chances));
    const label = kind === "multilabel" && chances[best] < 0.5 ? null : this.labels[best];
    return { label, score: chances[best], scores: Object.fromEntries(this.labels.map((name, at) => [name, chances[at]])) };
  }
}

/** Lengths of two texts that together have room, as `longest_first` of the tokenizers library gives them. */
function share(first, second, room) {
  if (first + second <= room) return [first, second];
  let [short, long] = [Math.min(first, second), Math.max(first, second)];
  long = Math.max(short, room - short);
  if (short + long > room) [short, long] = [Math.floor(room / 2), Math.ceil(room / 2)];
  return first > second ? [long, short] : [short, long];
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = logits.map((one) => Math.exp(one - most));
  const sum = powers.reduce((total, one) => total + one, 0);
  return powers.map((one) => one / sum);
}
