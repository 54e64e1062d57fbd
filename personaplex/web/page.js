/* What the server cannot see: the microphone, the network, and why there is none. */
(() => {
  const SILENT_PEAK = 1e-4, SILENT_AFTER_MS = 4000, LOOK_EVERY_MS = 500, RELEASE_AFTER_MS = 1500;
  const ANSWERED_WITHIN_MS = 20000, CONNECTED_WITHIN_MS = 9000, BACK_WITHIN_MS = 10000;
  const NO_PATH = "Sound cannot pass between this browser and the server: a firewall, or a tunnel that carries web pages "
    + "only. The operator can set up a relay (TURN) or start the page with --share; the tab “From a file” works here.";
  const START_BUTTON = "#conversation .button-wrap > button:first-child";
  const reasons = new Map();

  /* One sentence for each trouble; an empty one takes it back. What stands already is not told again: it is an alert. */
  function notice(kind, sentence) {
    if ((reasons.get(kind) || "") === sentence) return;
    if (sentence) reasons.set(kind, sentence); else reasons.delete(kind);
    showNotices();
  }

  function showNotices() {
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
  /* Of the page's requests for a microphone, those for a conversation. */
  const isForTalk = (wishes) => Boolean(wishes && wishes.audio && wishes.audio.autoGainControl === false);
  let talk = null, microphone = null, hasTalked = false;
  const isTalking = () => talk !== null && talk.signalingState !== "closed";

  function watchMicrophone(stream) {
    const track = stream.getAudioTracks()[0];
    if (!track) return;
    track.addEventListener("ended", () => {
      notice("microphone", "The microphone was disconnected. Plug it in and press Start again.");
    });
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
      if (PersonaPlexMicrophone.isClosed()) heardAt = performance.now();
      const silent = track.muted || performance.now() - heardAt > SILENT_AFTER_MS;
      notice("muted", silent ? "No sound comes from your microphone. Is it muted?" : "");
    }, LOOK_EVERY_MS);
  }

  const release = (stream) => stream.getTracks().forEach((each) => each.stop());

  /* FastRTC asks anew at every Start, and once more after Stop, and gives nothing back: only the newest is in use. */
  function replaceMicrophone(stream) {
    const before = microphone;
    microphone = stream;
    if (before) {
      const [old] = before.getAudioTracks(), [track] = stream.getAudioTracks();
      if (old && track && !old.enabled) track.enabled = false;  // what the mute button says stays true
      release(before);
    }
    if (!hasTalked) return;
    setTimeout(() => {
      if (microphone === stream && !isTalking()) release(stream);
    }, RELEASE_AFTER_MS);
  }

  /* FastRTC names the microphone of the first time exactly, and has no way back when that one is gone. */
  function withoutDevice(wishes) {
    const { deviceId, ...others } = wishes.audio;
    return { ...wishes, audio: others };
  }

  function watchDevices(devices) {
    const plain = devices.getUserMedia.bind(devices);
    const ask = async (wishes) => {
      try {
        return await plain(wishes);
      } catch (error) {
        const isGone = error.name === "OverconstrainedError" || error.name === "NotFoundError";
        if (!isGone || !isForTalk(wishes) || !wishes.audio.deviceId) throw error;
        return plain(withoutDevice(wishes));
      }
    };
    devices.getUserMedia = async (wishes) => {
      let stream;
      try {
        stream = await ask(wishes);
      } catch (error) {
        notice("microphone", DENIED[error.name] || `The microphone cannot be used: ${error.message}`);
        throw error;
      }
      notice("microphone", "");
      if (isForTalk(wishes)) replaceMicrophone(stream);
      try {
        watchMicrophone(stream);
        if (isForTalk(wishes)) PersonaPlexMicrophone.follow(stream);
      } catch (error) {
        console.warn("the microphone is not watched:", error);
      }
      return stream;
    };
  }

  function watchConnections() {
    const Plain = window.RTCPeerConnection;
    if (!Plain) {
      notice("secure", "This browser cannot talk (it has no WebRTC). Use a current Firefox, Chrome, Edge or Safari.");
      return;
    }
    /* Stop and leaving free the place at once: left alone, Stop takes half a second and a closed tab takes four. */
    const hangUp = () => { if (talk) talk.close(); talk = null; };
    document.addEventListener("click", (event) => {
      if (talk && event.target.closest(START_BUTTON)) setTimeout(hangUp);
    }, true);
    addEventListener("pagehide", hangUp);
    /* FastRTC leaves an offer that was refused as it is, microphone and all. */
    const giveUp = (offered) => {
      if (offered.signalingState !== "have-local-offer") return;
      offered.close();
      if (talk === offered && microphone) release(microphone);
    };
    /* FastRTC follows the connection's state, so it is told the one that a browser would report much later. */
    const end = (peer, state) => {
      Object.defineProperty(peer, "connectionState", { value: state });
      peer.dispatchEvent(new Event("connectionstatechange"));
      peer.close();
    };
    const giveUpConnecting = (peer) => {
      if (!peer.wasConnected && peer.signalingState === "stable") end(peer, "failed");
    };
    const giveUpWaiting = (peer) => {
      if (peer.signalingState !== "closed") end(peer, "disconnected");
    };
    /* An interruption may pass; FastRTC would end the conversation at its first sign, and begin one at its end. */
    const waitFor = (peer, event) => {
      const isBack = peer.connectionState === "connected" && peer.wasConnected;
      const isAway = peer.connectionState === "disconnected" && !Object.hasOwn(peer, "connectionState");
      if (isBack || isAway) event.stopImmediatePropagation();
      clearTimeout(peer.waiting);
      if (isAway) peer.waiting = setTimeout(() => giveUpWaiting(peer), BACK_WITHIN_MS);
      return isAway;
    };
    window.RTCPeerConnection = class extends Plain {
      constructor(...options) {
        super(...options);
        talk = this;
        hasTalked = true;
        setTimeout(() => giveUpConnecting(this), CONNECTED_WITHIN_MS);
        this.addEventListener("track", (event) => {
          if (event.track.kind === "audio") PersonaPlexMicrophone.play(new MediaStream([event.track]));
        });
        this.addEventListener("signalingstatechange", () => {
          if (this.signalingState === "have-local-offer") setTimeout(() => giveUp(this), ANSWERED_WITHIN_MS);
        });
        this.addEventListener("connectionstatechange", (event) => {
          const isAway = waitFor(this, event);
          this.wasConnected ||= this.connectionState === "connected";
          if (isAway) {
            notice("network", "The connection is interrupted. Waiting for it to come back …");
          } else if (this.connectionState === "failed") {
            notice("network", this.wasConnected ? "The connection to the server failed. Press Start to try again." : NO_PATH);
          } else if (this.connectionState === "disconnected") {
            notice("network", "The connection broke off. Press Start to talk again.");
          } else notice("network", "");
        });
      }
    };
  }

  if (navigator.mediaDevices && navigator.mediaDevices.getUserMedia) watchDevices(navigator.mediaDevices);
  watchConnections();
  addEventListener("offline", () => notice("offline", "This computer is offline. The conversation ends if that lasts."));
  addEventListener("online", () => notice("offline", ""));

  /* FastRTC calls Start, Connecting and Stop "start stream" alike, and the microphone a webcam. */
  function nameButtons() {
    const place = document.getElementById("conversation");
    const rename = () => {
      const start = document.querySelector(START_BUTTON);
      if (start && start.hasAttribute("aria-label")) start.removeAttribute("aria-label");
      const access = place.querySelector("[title='grant webcam access']");
      if (access) access.title = "grant access to the microphone";
    };
    rename();
    new MutationObserver(rename).observe(place, { subtree: true, childList: true, attributes: true, attributeFilter: ["aria-label", "title"] });
  }

  const started = setInterval(() => {
    if (!document.getElementById("notice")) return;
    clearInterval(started);
    if (!window.isSecureContext) {
      notice("secure", "Browsers give no microphone to a page over plain http, except on localhost. Open it as "
        + "http://localhost, or start it with --share or --ssl-cert and --ssl-key. The tab “From a file” works here.");
    }
    showNotices();
    nameButtons();
    document.querySelectorAll(".block.scroller").forEach((box) => { box.tabIndex = 0; });
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
