// Only what pymdownx.arithmatex marked as mathematics is typeset.
const delimiters = [
  { left: "\\(", right: "\\)", display: false },
  { left: "\\[", right: "\\]", display: true },
];
const typeset = () => {
  for (const element of document.querySelectorAll(".arithmatex")) renderMathInElement(element, { delimiters });
};
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", typeset);
else typeset();
