(function () {
  var nav = document.getElementById("filter"), input = nav.querySelector("input");
  var rows = document.querySelectorAll("#users tbody tr"), state = "";
  function show() {
    var text = input.value.toLowerCase();
    rows.forEach(function (row) {
      var fits = !state || row.dataset.state === state;
      row.style.display = fits && row.textContent.toLowerCase().includes(text) ? "" : "none";
    });
  }
  nav.addEventListener("click", function (event) {
    if (event.target.tagName !== "BUTTON") return;
    state = event.target.dataset.state;
    nav.querySelectorAll("button").forEach(function (b) { b.classList.toggle("on", b === event.target); });
    show();
  });
  input.addEventListener("input", show);
  nav.hidden = false;
})();
