// Service worker: hands the folder's files on with the headers that threads need, and with one that keeps workers, too, from
// reaching any other address. It keeps nothing.

const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; style-src 'self'; " +
    "img-src 'self' data: blob:; media-src 'self' blob:; base-uri 'none'; form-action 'none'",
};

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  if (new URL(event.request.url).origin !== self.location.origin) return;
  event.respondWith(
    fetch(event.request).then((answer) => {
      if (answer.status === 0 || answer.type === "opaqueredirect") return answer;
      const headers = new Headers(answer.headers);
      for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
      const empty = [101, 204, 205, 304].includes(answer.status);
      return new Response(empty ? null : answer.body, { status: answer.status, statusText: answer.statusText, headers });
    }),
  );
});
