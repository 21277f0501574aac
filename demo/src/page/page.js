// The page: a grid to vote on, or the leaderboard, by path.
"use strict";

const grid = document.getElementById("emoji");
const outcome = document.getElementById("outcome");

function say(text, failed = false) {
  outcome.textContent = text;
  outcome.classList.toggle("failed", failed);
}

async function get(path) {
  const answer = await fetch(path);
  const body = await answer.text();
  const value = body ? JSON.parse(body) : null;
  if (!answer.ok) throw new Error(`${answer.status}: ${value?.error ?? answer.statusText}`);
  return value;
}

async function vote({ shortcode, unicode }) {
  say(`Voting for ${unicode} …`);
  try {
    await get(`/api/vote?choice=${encodeURIComponent(shortcode)}`);
    say(`You voted for ${unicode} ${shortcode}`);
  } catch (error) {
    say(`Your vote for ${unicode} ${shortcode} was lost. ${error.message}`, true);
  }
}

function tile(emoji, tag) {
  const element = document.createElement(tag);
  element.textContent = emoji.unicode;
  element.title = emoji.shortcode;
  return element;
}

async function show() {
  const leaderboard = location.pathname === "/leaderboard";
  const list = await get(leaderboard ? "/api/leaderboard" : "/api/list");
  for (const emoji of list) {
    const element = tile(emoji, leaderboard ? "div" : "button");
    if (leaderboard) {
      const votes = document.createElement("small");
      votes.textContent = emoji.votes;
      element.append(votes);
    } else {
      element.setAttribute("aria-label", emoji.shortcode);
      element.addEventListener("click", () => vote(emoji));
    }
    grid.append(element);
  }
  if (leaderboard && list.length === 0) say("Nobody has voted yet.");
}

show()
  .catch((error) => say(`The list could not be loaded. ${error.message}`, true))
  .finally(() => grid.setAttribute("aria-busy", "false"));
