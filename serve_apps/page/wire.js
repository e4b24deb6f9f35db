// Requests to the router: with the key, with its errors in its own words, and the events of a stream.

const KEY = "largeforge-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What the router refused or broke off; `note` is the status and the code, `retryAfter` in seconds. */
export class RouterError extends Error {
  constructor({ message, type, code }, status = null, retryAfter = 0) {
    super(message);
    this.note = [status, code ?? type].filter(Boolean).join(" · ");
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/**
 * The response to a request, if it is a success. A 401 asks `askForKey(reason)`, which says whether there is
 * a new key to try again with. Raises RouterError, and AbortError once `signal` is aborted.
 */
export async function ask(path, { body, signal, askForKey }) {
  for (;;) {
    const used = key.get();
    const response = await reach(path, body, used, signal);
    if (response.ok) return response;
    const error = await failure(response);
    const renewed = error.status === 401 && (key.get() !== used || (await askForKey(error.message)));
    if (!renewed) throw error;
  }
}

async function reach(path, body, used, signal) {
  const headers = { ...(body && { "content-type": "application/json" }) };
  if (used) headers.authorization = `Bearer ${used}`;
  const method = body ? "POST" : "GET";
  try {
    const text = body && JSON.stringify(body);
    return await fetch(path, { method, headers, body: text, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RouterError({ message: "the router cannot be reached; is it still running?" });
  }
}

async function failure(response) {
  const { status } = response;
  const text = await response.text();
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  try {
    return new RouterError(JSON.parse(text).error, status, retryAfter);
  } catch {
    // Something between us and the router answered, in a shape of its own.
    return new RouterError({ message: text.slice(0, 200) || "an empty reply" }, status, retryAfter);
  }
}

/** A stream's events up to its [DONE]. Raises RouterError for an error event, or an end without [DONE]. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (let read = await next(reader); !read.done; read = await next(reader)) {
      const blocks = (rest + read.value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = /^data: ?(.*)$/m.exec(block)?.[1];
        if (data === "[DONE]") return;
        if (data === undefined) continue; // a comment that keeps the connection open
        const event = JSON.parse(data);
        if (event.error) throw new RouterError(event.error);
        yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // fails with what the stream itself has failed with
  }
  throw new RouterError({ message: "the stream broke off before the answer was over; send it again" });
}

/** A connection that breaks reads as its end; that it came before [DONE] is what counts. */
async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { done: true };
  }
}
