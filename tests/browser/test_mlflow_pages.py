"""MLflow's own pages, as somebody sees them who has never read this code: the runs, one run,
Compare, the registered model.
"""

import re

import pytest
from playwright.sync_api import Page, expect
from small_sweep import RECIPE, REGISTERED, Made

from sat_ray.integrations.mlflow.metrics import compared_name
from sat_ray.sweep.search.search_space import SearchPoint

pytestmark = pytest.mark.browser


def configurations(made: Made) -> list[str]:
    """Return the names that MLflow shows for the configurations on the leaderboard, best first."""
    fields = ("activation", "alpha", "attacker_activation", "attacker_alpha")
    return [
        compared_name(SearchPoint(**{field: group[field] for field in fields}))
        for group in made.board["groups"]
    ]


def show(page: Page, address: str) -> None:
    """Open one of MLflow's pages and put the assistant that it opens beside them away."""
    page.goto(address)
    page.get_by_text("MLflow Assistant").or_(page.get_by_role("heading")).first.wait_for()


def test_the_link_to_all_configurations_shows_them_alone_with_their_figures_and_compares_them(
    desk: Page, mlflow_pages: str, made: Made
) -> None:
    """From the address alone: no search is typed, no row is expanded, no column is chosen."""
    show(desk, mlflow_pages + made.links["all configurations"])
    for name in configurations(made):
        expect(desk.locator(".ag-root a", has_text=name).first).to_be_visible()
    expect(desk.locator(".ag-root .ag-center-cols-container .ag-row")).to_have_count(
        len(configurations(made))
    )
    for column in (
        "against_relu/beyond_noise",
        "against_relu/difference",
        "clean_accuracy",
    ):  # first by name
        expect(desk.locator(".ag-header-cell", has_text=column).first).to_be_visible()
    desk.get_by_label("Select all runs").check()
    desk.get_by_role("button", name="Compare").first.click()
    expect(
        desk.get_by_text("Comparing 3 Runs from 1 Experiment")
    ).to_be_visible()  # the sweep's own run is left out


def test_compare_draws_activation_alpha_and_robust_accuracy_and_says_what_is_real(
    desk: Page, mlflow_pages: str, made: Made
) -> None:
    show(desk, mlflow_pages + made.links["compare the configurations"])
    expect(desk.get_by_text("Comparing 3 Runs from 1 Experiment")).to_be_visible()
    plot = desk.locator(".js-plotly-plot").first
    plot.wait_for()
    axes = plot.locator(".axis-title").all_text_contents()
    assert axes[:2] == ["activation", "alpha"] and axes[-1] == "strong_robust_accuracy"
    for metric in (
        "robust_accuracy",
        "clean_accuracy",
        "against_relu/difference",
        "against_relu/beyond_noise",
        "cost/accelerator_seconds",
    ):
        expect(desk.get_by_text(metric, exact=True).last).to_be_attached()
    expect(desk.get_by_text("sat_ray.against_relu").first).to_be_attached()
    verdicts = {
        run.data.tags["sat_ray.against_relu"] for run in made.runs("configuration").values()
    }
    assert "baseline" in verdicts and len(verdicts) > 1
    for verdict in verdicts:
        expect(desk.get_by_text(verdict, exact=True).first).to_be_attached()
    desk.get_by_role("tab", name="Scatter Plot").click()
    expect(desk.get_by_text("X-axis:").first).to_be_visible()
    scatter = desk.locator(".js-plotly-plot").last
    expect(scatter.locator(".xtitle")).to_have_text("activation")
    expect(scatter.locator(".ytitle")).to_have_text("against_relu/beyond_noise")
    ticks = scatter.locator(".xtick")
    expect(ticks).to_have_count(3)
    assert set(ticks.all_text_contents()) == {"relu", "silu", "parametric_softplus"}


def test_the_sweep_shows_its_leaderboard_its_figure_and_its_children(
    desk: Page, mlflow_pages: str, made: Made
) -> None:
    show(desk, f"{mlflow_pages}/#/runs/{made.parent}")
    expect(desk.get_by_text(made.board["headline"]["sentence"]).first).to_be_visible()
    desk.get_by_text("Show more").first.click()
    table = desk.get_by_role("table").first
    for name in (group["configuration"] for group in made.board["groups"]):
        expect(table.get_by_text(name, exact=False).first).to_be_visible()
    expect(desk.get_by_text("python pipelines/sweep.py digits_smoke").first).to_be_visible()
    picture = desk.locator("img[src*='clean_against_robust']").first
    picture.wait_for()
    desk.wait_for_function(
        "image => image.complete && image.naturalWidth > 300", arg=picture.element_handle()
    )
    for child in ("search", "silu"):
        expect(desk.get_by_role("link", name=re.compile(f"^{child}")).first).to_be_visible()
    expect(desk.get_by_text("sat_ray.kind").first).to_be_visible()


def test_a_configuration_shows_its_seeds_data_and_training(
    desk: Page, mlflow_pages: str, made: Made
) -> None:
    run = made.runs("configuration")["silu"]
    show(desk, f"{mlflow_pages}/#/runs/{run.info.run_id}")
    for text in ("silu · seed 0", "silu · seed 2"):
        expect(desk.get_by_role("link", name=text).first).to_be_visible()
    expect(desk.get_by_text("mean ± standard deviation over 3 seeds").first).to_be_visible()
    expect(desk.get_by_text(re.compile("^digits")).first).to_be_visible()
    assert {one.tags[0].value for one in run.inputs.dataset_inputs} == {"train", "val", "test"}
    desk.goto(
        f"{mlflow_pages}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/figures/training.png"
    )
    picture = desk.locator(
        "img[src*='blob:'], .image-container img, .image-outer-container img"
    ).first
    picture.wait_for()
    desk.wait_for_function(
        "image => image.complete && image.naturalWidth > 300", arg=picture.element_handle()
    )


def test_trials_are_below_the_search_and_seeds_below_their_configuration(made: Made) -> None:
    trials, search = made.runs("trial"), made.runs("search")["search"].info.run_id
    assert set(trials) == {"relu", "silu", "parametric_softplus α=5", "parametric_softplus α=10"}
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {search}
    for name, run in made.runs("finalist").items():
        above = made.client.get_run(run.data.tags["mlflow.parentRunId"])
        assert above.info.run_name in configurations(made)
        assert name.endswith(f" · seed {run.data.params['seed']}")
        steps = [
            point.step
            for point in made.client.get_metric_history(run.info.run_id, "val/robust_accuracy")
        ]
        assert steps == [1, 2]


def test_the_load_of_the_machine_is_on_the_sweeps_system_metrics_page(
    desk: Page, mlflow_pages: str, made: Made
) -> None:
    metrics = made.client.get_run(made.parent).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    show(
        desk,
        f"{mlflow_pages}/#/experiments/{made.client.get_experiment_by_name(RECIPE).experiment_id}/runs/{made.parent}/system-metrics",
    )
    expect(desk.get_by_text(re.compile("cpu_utilization_perc")).first).to_be_visible()


def test_the_registered_model_shows_its_robustness_card(
    desk: Page, mlflow_pages: str, made: Made
) -> None:
    show(desk, f"{mlflow_pages}/#/models/{REGISTERED}/versions/1")
    expect(desk.get_by_text("more steps would not help").first).to_be_visible()
    expect(desk.get_by_text(re.compile(r"cascade \d")).first).to_be_visible()
    expect(desk.get_by_text("sat_ray.robustness_card").first).to_be_visible()
