/* What the server cannot see: the microphone, the network, and why there is none. */
(() => {
  const SILENT_PEAK = 1e-4, SILENT_AFTER_MS = 4000, LOOK_EVERY_MS = 500;
  const reasons = new Map();

  /* One sentence for each trouble; an empty one takes it back. */
  function notice(kind, sentence) {
    if (sentence) reasons.set(kind, sentence); else reasons.delete(kind);
    const place = document.getElementById("notice");
    if (!place) return;
    place.replaceChildren(...[...reasons.values()].map((text) => {
      const box = document.createElement("div");
      box.className = "notice";
      box.setAttribute("role", "alert");
      box.textContent = text;
      return box;
    }));
  }

  const DENIED = {
    NotAllowedError: "The browser gives no microphone to this page. Allow it (the sign beside the address) and press Start again.",
    NotFoundError: "No microphone was found. Plug one in, or use the tab “From a file”.",
    NotReadableError: "The microphone is used by another program. Close that program and press Start again.",
    OverconstrainedError: "This microphone cannot be used. Choose another one in the browser's settings.",
  };

  function watchMicrophone(stream) {
    const track = stream.getAudioTracks()[0];
    if (!track) return;
    track.addEventListener("ended", () => notice("muted", "The microphone was disconnected. Plug it in and press Start again."));
    const context = new AudioContext();
    const meter = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(meter);
    const samples = new Float32Array(meter.fftSize);
    let heardAt = performance.now();
    const timer = setInterval(() => {
      if (track.readyState === "ended") {
        clearInterval(timer);
        context.close();
        notice("muted", "");
        return;
      }
      if (context.state !== "running") { context.resume().catch(() => {}); heardAt = performance.now(); return; }
      meter.getFloatTimeDomainData(samples);
      if (samples.some((sample) => Math.abs(sample) > SILENT_PEAK)) heardAt = performance.now();
      const silent = track.muted || performance.now() - heardAt > SILENT_AFTER_MS;
      notice("muted", silent ? "No sound comes from your microphone. Is it muted?" : "");
    }, LOOK_EVERY_MS);
  }

  function watchDevices(devices) {
    const ask = devices.getUserMedia.bind(devices);
    devices.getUserMedia = async (wishes) => {
      try {
        const stream = await ask(wishes);
        notice("microphone", "");
        watchMicrophone(stream);
        return stream;
      } catch (error) {
        notice("microphone", DENIED[error.name] || `The microphone cannot be used: ${error.message}`);
        throw error;
      }
    };
  }

  function watchConnections() {
    const Plain = window.RTCPeerConnection;
    if (!Plain) {
      notice("secure", "This browser cannot talk (it has no WebRTC). Use a current Firefox, Chrome, Edge or Safari.");
      return;
    }
    let talk = null;
    /* Stop and leaving free the place at once: left alone, Stop takes half a second and a closed tab takes four. */
    const hangUp = () => { if (talk) talk.close(); talk = null; };
    document.addEventListener("click", (event) => {
      if (talk && event.target.closest("#conversation button[aria-label='start stream']")) setTimeout(hangUp);
    }, true);
    addEventListener("pagehide", hangUp);
    window.RTCPeerConnection = class extends Plain {
      constructor(...options) {
        super(...options);
        talk = this;
        this.addEventListener("connectionstatechange", () => {
          if (this.connectionState === "failed") {
            notice("network", "The connection to the server failed: a firewall may be in the way. Press Start to try again.");
          } else if (this.connectionState === "disconnected") {
            notice("network", "The connection is interrupted …");
          } else notice("network", "");
        });
      }
    };
  }

  if (navigator.mediaDevices && navigator.mediaDevices.getUserMedia) watchDevices(navigator.mediaDevices);
  watchConnections();
  addEventListener("offline", () => notice("offline", "This computer is offline. The conversation ends if that lasts."));
  addEventListener("online", () => notice("offline", ""));

  const started = setInterval(() => {
    if (!document.getElementById("notice")) return;
    clearInterval(started);
    if (!window.isSecureContext) {
      notice("secure", "Browsers give no microphone to a page over plain http, except on localhost. Open it as "
        + "http://localhost, or start it with --share or --ssl-cert and --ssl-key. The tab “From a file” works here.");
    } else notice("", "");
  }, 200);

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const lines = [...document.querySelectorAll(`#${button.dataset.copies} .transcript p:not(.hint)`)];
    const text = lines.map((line) => line.innerText.replace(/\s+/g, " ").trim()).join("\n");
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = text ? "Copied" : "Nothing yet";
    } catch {
      button.textContent = "Select and copy by hand";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
})();
