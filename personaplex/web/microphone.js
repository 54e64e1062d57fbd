/* The microphone's level in words, and a microphone that is open only while it is held. */
const PersonaPlexMicrophone = (() => {
  const LOOK_EVERY_MS = 50, KEPT_LEVELS = 60, NEWEST_LEVELS = 12, QUIET_DB = -70;
  const HEARD_DB = -42, SOFT_DB = -65, ABOVE_ROOM_DB = 10, CLIPPED_PEAK = 0.99;
  const LONGEST_LAG = 12, LEAST_LEVELS = 30, LIKE = 0.8, LEAST_SPREAD_DB = 4;
  const SENTENCES = {
    off: "The microphone is off.",
    quiet: "Quiet.",
    heard: "I hear you.",
    soft: "Too soft: come closer, or turn the microphone up.",
    clipped: "Clipped: too loud, turn the microphone down.",
    myself: "I hear myself: use headphones, or turn the loudspeaker down.",
    closed: "Closed: hold the button or the space bar to talk.",
  };

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const spread = (values) => { const m = mean(values); return Math.sqrt(mean(values.map((v) => (v - m) ** 2))); };

  function correlation(one, other) {
    const a = mean(one), b = mean(other);
    const together = mean(one.map((value, i) => (value - a) * (other[i] - b)));
    return together / Math.max(1e-9, spread(one) * spread(other));
  }

  /* How alike the microphone's levels are to the loudspeaker's some time before, at the likeliest delay: −1 to 1. */
  function likeness(microphone, speaker) {
    let best = 0;
    for (let lag = 1; lag <= LONGEST_LAG; lag += 1) {
      const later = microphone.slice(lag), before = speaker.slice(0, later.length);
      if (later.length < LEAST_LEVELS || Math.min(spread(later), spread(before)) < LEAST_SPREAD_DB) continue;
      best = Math.max(best, correlation(later, before));
    }
    return best;
  }

  /* levels: dB of both sides, the newest last; peaks: the microphone's, 0 to 1. */
  function verdict({ microphone, speaker, peaks }) {
    if (!microphone.length) return "off";
    const newest = Math.max(...microphone.slice(-NEWEST_LEVELS));
    if (peaks.slice(-2 * NEWEST_LEVELS).some((peak) => peak >= CLIPPED_PEAK)) return "clipped";
    if (newest > SOFT_DB && likeness(microphone, speaker) >= LIKE) return "myself";
    if (newest >= HEARD_DB) return "heard";
    const room = [...microphone].sort((a, b) => a - b)[Math.floor(microphone.length / 10)];
    return newest > SOFT_DB && newest - room >= ABOVE_ROOM_DB ? "soft" : "quiet";
  }

  const heard = { microphone: [], speaker: [], peaks: [] };
  let context = null, microphone = null, speaker = null, track = null, timer = null;
  let isHolding = false, isHeld = false, wasOpen = true;

  function analyserOf(stream) {
    context ||= new AudioContext();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(analyser);
    return analyser;
  }

  function loudness(analyser) {
    if (!analyser) return { level_db: QUIET_DB, peak: 0 };
    const samples = new Float32Array(analyser.fftSize);
    analyser.getFloatTimeDomainData(samples);
    let sum = 0, peak = 0;
    for (const sample of samples) { sum += sample * sample; peak = Math.max(peak, Math.abs(sample)); }
    return { level_db: Math.max(QUIET_DB, 10 * Math.log10(sum / samples.length + 1e-12)), peak };
  }

  function forget() {
    for (const values of Object.values(heard)) values.length = 0;
  }

  function keep(values, value) {
    values.push(value);
    if (values.length > KEPT_LEVELS) values.shift();
  }

  function look() {
    if (!track || track.readyState === "ended") {
      clearInterval(timer);
      timer = track = microphone = speaker = null;
      forget();
      show("off", QUIET_DB);
      return;
    }
    if (context.state !== "running") context.resume().catch(() => {});
    if (isHolding) track.enabled = isHeld;
    const mine = loudness(microphone);
    keep(heard.microphone, mine.level_db);
    keep(heard.peaks, mine.peak);
    keep(heard.speaker, loudness(speaker).level_db);
    show(isHolding && !isHeld ? "closed" : verdict(heard), mine.level_db);
  }

  function show(name, level_db) {
    const place = document.querySelector("#microphone .level");
    if (!place) return;
    const percent = Math.round(100 * Math.min(1, Math.max(0, 1 - level_db / QUIET_DB)));
    place.querySelector("i").style.width = `${percent}%`;
    place.querySelector("[role=meter]").setAttribute("aria-valuenow", percent);
    if (place.dataset.verdict === name) return;  // what stands already is not told again: it is a status
    place.dataset.verdict = name;
    place.querySelector("[role=status]").textContent = SENTENCES[name];
  }

  function hold(held) {
    isHeld = isHolding && held;
    if (isHolding && track) track.enabled = isHeld;
    const button = document.querySelector("#microphone button.hold");
    if (button) button.setAttribute("aria-pressed", String(isHeld));
  }

  function choose(holding) {
    if (holding === isHolding) return;
    if (holding && track) wasOpen = track.enabled;
    isHolding = holding;
    if (!holding && track) track.enabled = wasOpen;  // what the mute button says stays true
    hold(false);
    forget();
    const button = document.querySelector("#microphone button.hold");
    button.hidden = !holding;
    if (holding) button.focus();
  }

  const isOfHold = (event) => event.target instanceof Element && event.target.closest("#microphone button.hold");
  const isTyping = (target) => target instanceof Element && target.closest("input, textarea, select, [contenteditable=true]");

  function onKey(event) {
    if (event.code !== "Space" || !isHolding || isTyping(event.target)) return;
    event.preventDefault();  // it would scroll the page, or press the button that has the focus
    hold(event.type === "keydown");
  }

  function listen() {
    document.addEventListener("change", (event) => {
      if (event.target.closest("#microphone input.holding")) choose(event.target.checked);
    });
    document.addEventListener("pointerdown", (event) => {
      if (!isOfHold(event)) return;
      event.preventDefault();
      hold(true);
    });
    for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => { if (isHeld) hold(false); });
    document.addEventListener("contextmenu", (event) => { if (isOfHold(event)) event.preventDefault(); });
    for (const key of ["keydown", "keyup"]) document.addEventListener(key, onKey, true);
    addEventListener("blur", () => hold(false));
    document.addEventListener("visibilitychange", () => { if (document.hidden) hold(false); });
  }

  /* The microphone of a conversation that begins. */
  function follow(stream) {
    [track] = stream.getAudioTracks();
    wasOpen = track.enabled;
    microphone = analyserOf(stream);
    forget();
    hold(false);
    timer ||= setInterval(look, LOOK_EVERY_MS);
  }

  /* What the loudspeaker plays. */
  function play(stream) {
    speaker = analyserOf(stream);
  }

  listen();
  return { follow, play, verdict, likeness, isClosed: () => isHolding && !isHeld };
})();
