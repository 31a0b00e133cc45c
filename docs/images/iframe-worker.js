// Browsers start no worker for a page that was opened from disk. The theme's search runs in a hidden frame there,
// which is handed messages, and hands them back, as a worker is and does.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script>postMessage = data => frameElement.answer(data)</script><script src="${script}"></script>`;
      this.frame.answer = data => this.dispatchEvent(new MessageEvent("message", {data}));
      this.loaded = new Promise(done => this.frame.addEventListener("load", done));
      document.body.append(this.frame);
    }

    async postMessage(data) {
      await this.loaded;
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data}));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
