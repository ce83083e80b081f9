// Everything that is drawn, once the data is unpacked.
const data = await unpacked("data");
const curves = document.getElementById("curves");
if (curves) {
  const charts = drawCurves(curves.querySelector("[data-charts]"), data.curves, data.names);
  legend(curves.querySelector(".keys"), data.names, charts, (k) => [k + 1]);
}
data.bands.forEach((chart, k) => {
  if (chart) drawBands(document.querySelector(`[data-bands="${k}"]`), chart);
});
const schedules = document.getElementById("schedules");
if (schedules) new Timeline(schedules, data.timeline);
root.dataset.ready = "yes";
