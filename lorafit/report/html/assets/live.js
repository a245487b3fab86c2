// Keeps a page true while its run goes on: asks the server that it came from, once a second.
"use strict";

(() => {
  const PAUSE_MS = 1000;
  const state = document.getElementById("live-state");
  const progress = document.getElementById("live-progress");
  const run = lorafit.data.runs[0];
  let position = { generation: "", next: 0, version: "" };
  let failures = 0;

  function append(answer) {
    if (answer.restarted || !run.columns) run.columns = {};
    for (const [name, values] of Object.entries(answer.columns)) {
      run.columns[name] = (run.columns[name] || []).concat(values);
    }
    if (answer.restarted || answer.columns.step.length) lorafit.refresh();
  }

  function replace(sections) {
    for (const [name, html] of Object.entries(sections)) {
      const section = document.querySelector(`[data-section="${name}"]`);
      const open = [...section.querySelectorAll("details[open]")].map((one) => one.dataset.keep);
      section.innerHTML = html;  // Rendered by the server, where all text is escaped.
      section.querySelectorAll("details").forEach((one) => { one.open = open.includes(one.dataset.keep); });
    }
  }

  function tell(answer) {
    const steps = run.columns.step;
    const done = steps.length ? steps[steps.length - 1] : 0;
    progress.value = done;
    progress.hidden = answer.status !== "running";
    state.textContent = answer.status === "running"
      ? `running: step ${done} of ${lorafit.data.total_steps}`
      : `the run has ended: ${answer.status.replaceAll("_", " ")}`;
  }

  async function ask() {
    const query = new URLSearchParams(position);
    const response = await fetch(`state?${query}`, { cache: "no-store" });
    if (!response.ok) throw new Error(String(response.status));
    const answer = await response.json();
    position = { generation: answer.generation, next: answer.next, version: answer.version };
    append(answer);
    if (answer.sections) replace(answer.sections);
    tell(answer);
    return answer.more;
  }

  async function watch() {
    for (;;) {
      let more = false;
      try {
        if (!document.hidden) more = await ask();
        failures = 0;
      } catch {
        failures += 1;
        state.textContent = "the server does not answer; these are the last figures it gave";
      }
      if (!more) await new Promise((wake) => setTimeout(wake, PAUSE_MS * Math.min(2 ** failures, 16)));
    }
  }

  watch();
})();
