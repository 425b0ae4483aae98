"""The admin in a real browser: weights moved, previewed, saved and searched by; accessibility.

Chromium drives a real server on real PostgreSQL and Redis. ``SCREENSHOTS=1`` writes the
pictures of the README anew.
"""

from __future__ import annotations

import os
import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.core.cache import cache
from django.urls import reverse
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from cartrita_search import judging
from cartrita_search.admin import weight_curve
from cartrita_search.embedders import get_embedder
from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.models import RetrievalConfig, SearchDocument, SearchPerformanceMetric
from cartrita_search.retrieval import search
from tests.topics import BY_MEANING, BY_WORD, QUESTION, embedded_by_topics, load_topics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("clean_tables"),
    # selenium leaves its connection to the driver to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

DESKTOP, PHONE = 1440, 390
AXE = settings.BASE_DIR / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = settings.BASE_DIR / "docs" / "images"
#: What Django's own templates and widgets have to answer for.
DJANGO_S_OWN = (".select2-container", ".selector", ".datetime")
#: Within which a page, or a part of it, is there.
DEADLINE_SECONDS = 120
PASSWORD = "correct horse battery staple"

#: Of a fresh profile, without anything that goes out to the network.
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """A window on the live server."""

    def __init__(self, driver: Any, site: str) -> None:
        self.driver, self.site = driver, site

    def open(self, path: str, width: int = DESKTOP) -> None:
        # The device's own width: a window of Chromium's is never narrower than 500.
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800},
        )
        self.driver.get(self.site + path)

    def theme(self, name: str) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": name}]},
        )

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [found.text for found in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def until(self, condition: Callable[[], Any]) -> Any:
        # What is looked at may be taken away under the look: by a preview, or a page.
        passing = (NoSuchElementException, StaleElementReferenceException)
        waiting = WebDriverWait(self.driver, DEADLINE_SECONDS, 0.05, ignored_exceptions=passing)
        return waiting.until(lambda _: condition())

    def value(self, selector: str) -> str:
        return str(self.one(selector).get_property("value"))

    def slide(self, selector: str, value: float) -> None:
        """As a finger would: the value, and the event of it."""
        self.driver.execute_script(
            "arguments[0].value = arguments[1];"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
            "arguments[0].dispatchEvent(new Event('change', {bubbles: true}));",
            self.one(selector),
            value,
        )

    def violations(self) -> list[str]:
        """What axe-core calls serious or critical, with the elements it is about."""
        # Colours on their way from one theme to the other are neither's.
        moving = "return document.getAnimations().some(each => each.playState === 'running')"
        self.until(lambda: not self.driver.execute_script(moving))
        self.driver.execute_script(AXE.read_text())
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run({exclude: arguments[0]}, {resultTypes: ['violations']})"
            ".then(result => done(result.violations));",
            [[selector] for selector in DJANGO_S_OWN],
        )
        return [
            f"{each['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
            for each in found
            if each["impact"] in {"serious", "critical"}
            for node in each["nodes"]
        ]

    def overflow(self) -> int:
        """Pixels that the page is wider than the window, or a slider than its place."""
        return int(
            self.driver.execute_script(
                "const right = (element) => element.getBoundingClientRect().right;"
                "return Math.max(document.documentElement.scrollWidth - window.innerWidth,"
                " ...[...document.querySelectorAll('input[type=range]')]"
                ".map(slider => right(slider) - right(slider.parentElement)));"
            )
        )

    def complaints(self) -> list[str]:
        """What the console says, but for the icon that every browser asks for."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if "favicon.ico" not in entry["message"]]

    def picture(self, name: str, top: str = "body") -> None:
        """The page from that element on, for the README."""
        if os.environ.get("SCREENSHOTS"):
            y, height, width = self.driver.execute_script(
                "return [document.querySelector(arguments[0]).getBoundingClientRect().top"
                " + window.scrollY, document.documentElement.scrollHeight, window.innerWidth]",
                top,
            )
            taken = self.driver.execute_cdp_cmd(
                "Page.captureScreenshot",
                {
                    "captureBeyondViewport": True,
                    "clip": {
                        "x": 0,
                        "y": y,
                        "width": width,
                        "height": min(height - y, 1900 if width > PHONE else 900),
                        "scale": 1,
                    },
                },
            )
            (PICTURES / f"{name}.png").write_bytes(b64decode(taken["data"]))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for command in ("chromium", "chromedriver"):
        assert shutil.which(command), f"{command} is missing: make packages"
    assert AXE.is_file(), "axe-core is missing: npm install --prefix tests/node"
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver") or "")
    opened = webdriver.Chrome(options=options, service=service)
    opened.set_script_timeout(DEADLINE_SECONDS)
    yield opened
    opened.quit()


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def browser(driver: Any, live_server: LiveServer) -> Iterator[Browser]:
    """Logged in as a superuser, by the form."""
    cache.clear()
    User.objects.create_superuser("grace", password=PASSWORD)
    driver.delete_all_cookies()
    with embedded_by_topics():
        opened = Browser(driver, live_server.url)
        opened.complaints()  # those of another test
        opened.theme("light")
        opened.open(reverse("admin:login"))
        opened.one("#id_username").send_keys("grace")
        opened.one("#id_password").send_keys(PASSWORD + Keys.ENTER)
        opened.until(lambda: opened.texts("#user-tools"))
        yield opened
        driver.get("about:blank")


def config_page(config: RetrievalConfig) -> str:
    return reverse("admin:cartrita_search_retrievalconfig_change", args=[config.pk])


def titles(browser: Browser, column: str) -> list[str]:
    return browser.texts(f"section[aria-labelledby='{column}'] .cs-hits strong")


def first_found(user: User) -> str:
    return search(QUESTION, user=user)[0].source_id


def test_a_slider_is_moved_the_preview_follows_and_the_next_search_uses_it(
    browser: Browser, ada: User
) -> None:
    load_topics(ada)
    config = RetrievalConfig.objects.create(user=ada)
    assert first_found(ada) == BY_MEANING[0]

    browser.open(config_page(config))
    browser.one("#id_question").send_keys(QUESTION + Keys.ENTER)
    browser.until(lambda: titles(browser, "cs-edited"))
    assert titles(browser, "cs-edited") == titles(browser, "cs-saved")
    assert titles(browser, "cs-saved")[0] == BY_MEANING[1]

    browser.slide("#id_vector_weight_slider", 0.5)
    assert browser.value("#id_keyword_weight") == "0.5"
    assert browser.value("#id_preview_slider") == "0.5"
    browser.until(lambda: "Edited: 0.5" in browser.one("#cs-edited").text)
    # Beside the results is another one.
    browser.slide("#id_preview_slider", 0.2)
    assert "0.2 meaning, 0.8 words" in browser.one(".cs-live").text
    assert browser.value("#id_keyword_weight") == "0.8"
    assert browser.value("#id_keyword_weight_slider") == "0.8"
    browser.until(lambda: "Edited: 0.2" in browser.one("#cs-edited").text)
    browser.until(lambda: titles(browser, "cs-edited")[-1] == BY_MEANING[1])
    assert titles(browser, "cs-saved")[0] == BY_MEANING[1]
    assert "down 2" in browser.texts(".cs-badge")
    # A title is text, whatever it says.
    assert "script" in titles(browser, "cs-edited")[0]
    assert "owned" not in browser.driver.title

    judge = browser.one("button[name='judge'][value$=':1']")
    value = judge.get_attribute("value")
    judge.send_keys(Keys.ENTER)
    browser.until(lambda: browser.texts("button[name='judge'][aria-pressed='true']"))
    assert browser.driver.switch_to.active_element.get_attribute("value") == value

    for theme in ("dark", "light"):
        browser.theme(theme)
        assert browser.violations() == []

    browser.one(".cs-live button[name='_continue']").click()
    browser.until(lambda: browser.texts(".messagelist .success"))
    config.refresh_from_db()
    assert (config.vector_weight, config.keyword_weight) == (0.2, 0.8)
    assert first_found(ada) != BY_MEANING[0]
    assert browser.complaints() == []


def test_weights_are_linked_by_keyboard_numbers_and_presets(browser: Browser) -> None:
    config = RetrievalConfig.objects.create()
    browser.open(config_page(config))
    browser.one("#id_vector_weight_slider").send_keys(Keys.ARROW_LEFT)
    assert browser.value("#id_vector_weight") == "0.69"
    assert browser.value("#id_keyword_weight") == "0.31"

    number = browser.one("#id_keyword_weight")
    number.send_keys(Keys.CONTROL + "a")
    number.send_keys("0.35")
    assert browser.value("#id_vector_weight") == "0.65"
    assert browser.value("#id_keyword_weight") == "0.35"

    preset = browser.one("a.cs-preset[data-vector-weight='0.5']")
    preset.send_keys(Keys.ENTER)
    assert browser.value("#id_vector_weight") == "0.5"
    assert browser.value("#id_keyword_weight_slider") == "0.5"
    assert browser.driver.current_url.endswith(config_page(config))
    assert browser.complaints() == []


def test_weights_are_linked_on_the_page_of_a_person_too(browser: Browser, ada: User) -> None:
    RetrievalConfig.objects.create(user=ada)
    browser.open(reverse("admin:auth_user_change", args=[ada.pk]))
    browser.slide("#id_retrieval_configs-0-vector_weight_slider", 0.25)
    assert browser.value("#id_retrieval_configs-0-keyword_weight") == "0.75"
    browser.one("#retrieval_configs-group .add-row a").click()
    browser.slide("#id_retrieval_configs-1-keyword_weight_slider", 0.4)
    assert browser.value("#id_retrieval_configs-1-vector_weight") == "0.6"
    assert browser.complaints() == []


def test_a_preview_without_an_answer_says_so_and_the_next_one_is_shown(
    browser: Browser, ada: User
) -> None:
    load_topics(ada)
    browser.open(config_page(RetrievalConfig.objects.create(user=ada)))
    token = browser.driver.get_cookie("csrftoken")
    browser.driver.delete_cookie("csrftoken")  # Django's own page refuses that
    browser.one("#id_question").send_keys(QUESTION + Keys.ENTER)
    browser.until(lambda: "There was no answer." in browser.one(".cs-status").text)
    browser.driver.add_cookie(token)
    browser.one("#id_question").send_keys(Keys.ENTER)
    browser.until(lambda: titles(browser, "cs-edited"))
    assert "no answer" not in browser.one(".cs-status").text


def test_all_of_it_works_without_scripts(browser: Browser, ada: User) -> None:
    load_topics(ada)
    config = RetrievalConfig.objects.create(user=ada)
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(config_page(config))
        browser.one("#id_question").send_keys(QUESTION)
        edited = browser.one("#id_preview_vector_weight")
        edited.clear()
        edited.send_keys("0.2", Keys.ENTER)
        browser.until(lambda: titles(browser, "cs-edited"))
        assert titles(browser, "cs-edited")[-1] == BY_MEANING[1]
        browser.driver.find_element(By.PARTIAL_LINK_TEXT, "with these weights").click()
        browser.until(lambda: browser.texts("#id_keyword_weight"))
        assert browser.value("#id_keyword_weight") == "0.8"
        browser.one("a.cs-preset[data-vector-weight='0.5']").click()
        browser.until(lambda: browser.value("#id_vector_weight") == "0.5")
        browser.one("input[name='_save']").click()
        browser.until(lambda: browser.texts(".messagelist .success"))
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    config.refresh_from_db()
    assert (config.vector_weight, config.keyword_weight) == (0.5, 0.5)


def test_a_bulk_action_asks_and_does(browser: Browser, ada: User) -> None:
    config = RetrievalConfig.objects.create(user=ada, is_active=False)
    browser.open(reverse("admin:cartrita_search_retrievalconfig_changelist"))
    browser.one("input.action-select").click()
    Select(browser.one("select[name='action']")).select_by_value("activate")
    browser.one("button[name='index']").click()
    browser.until(lambda: browser.texts("button[name='confirmed']"))
    assert browser.violations() == []
    browser.one("button[name='confirmed']").click()
    browser.until(lambda: browser.texts(".messagelist .success"))
    config.refresh_from_db()
    assert config.is_active


def fill(ada: User) -> dict[str, str]:
    """Rows for every page, and the addresses of the main ones."""
    load_topics(ada)
    site = RetrievalConfig.objects.create()
    config = RetrievalConfig.objects.create(user=ada, vector_weight=0.4, keyword_weight=0.6)
    grace = User.objects.get(username="grace")
    LogEntry.objects.log_actions(str(grace.pk), [config], CHANGE, "", single_object=True)
    types = ("hybrid", "hybrid", "vector", "keyword")
    SearchPerformanceMetric.objects.bulk_create(
        SearchPerformanceMetric(
            user=ada if number % 3 else None,
            search_type=types[number % 4],
            query_text=f"question {number % 5}",
            query_hash=f"{number % 5:064x}",
            result_count=number % 7,
            execution_time_ms=6 + number % 11 + number / 40,
            cache_hit=number % 4 == 0,
            created_at=timezone.now() - timedelta(minutes=number * number % 1440),
        )
        for number in range(400)
    )
    document = SearchDocument.objects.get(source_id=BY_MEANING[0])
    for question in ("car", "the car", "motor", "a lawn", "flower", "toy car"):
        key = BY_MEANING if "car" in question or question == "motor" else BY_WORD
        judging.judge(question, ("notes", key[0], 0), 1, user_id=None, by="grace")
    # As the button of its page would have it drawn.
    cache.set(weight_curve._key(site), weight_curve._curve(site))

    def of(name: str, *arguments: object) -> str:
        return reverse(f"admin:{name}", args=arguments)

    return {
        "index": of("index"),
        "admin-dashboard": of("cartrita_search_dashboard"),
        "admin-configs": of("cartrita_search_retrievalconfig_changelist"),
        "config": config_page(config),
        "site": config_page(site),
        "preview": of("cartrita_search_retrievalconfig_preview", config.pk),
        "admin-curve": of("cartrita_search_retrievalconfig_curve", site.pk),
        "judgements": of("cartrita_search_searchjudgement_add"),
        "health": of("cartrita_search_health"),
        "documents": of("cartrita_search_searchdocument_changelist") + "?q=car",
        "similar": of("cartrita_search_searchdocument_similar", document.pk),
        "document": of("cartrita_search_searchdocument_change", document.pk),
        "models": of("cartrita_search_embeddingmodel_changelist"),
        "model": of("cartrita_search_embeddingmodel_change", "topics"),
        "sessions": of("cartrita_search_redissession_changelist"),
        "person": of("auth_user_change", ada.pk),
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_pages_are_accessible_fit_the_window_and_leave_the_console_empty(
    width: int, theme: str, browser: Browser, ada: User
) -> None:
    pages = fill(ada)
    browser.theme(theme)
    found: dict[str, Any] = {}
    for name, path in pages.items():
        browser.open(path, width)
        browser.until(lambda: not browser.texts("[aria-busy]"))
        if name == "admin-dashboard":
            assert "Findings" in browser.texts("[data-load] h3")
        problems = [*browser.violations(), *browser.complaints()]
        if browser.overflow() > 0:
            problems.append(f"{browser.overflow()} pixels too wide")
        if problems:
            found[name] = problems
        if (width, theme) == (DESKTOP, "light") and name.startswith("admin-"):
            browser.picture(name)
        elif (width, theme, name) == (PHONE, "dark", "admin-dashboard"):
            browser.picture(f"{name}-phone")
    assert not found, "\n".join(f"{name}: {each}" for name in found for each in found[name])


#: A help desk's own pages, for the picture of the preview.
HELP_DESK = {
    "Forgotten password": "Choose “I cannot log in” and follow the link that we send by mail to "
    "set a new password.",
    "Password rules": "Passwords have twelve characters at least and are never sent by mail.",
    "Two-factor login": "Besides the password a code from your phone is asked for. Reset the "
    "codes in your profile.",
    "Locked out after many tries": "After ten failed logins the account is closed for an hour. "
    "The help desk can open it at once.",
    "Reset a meeting room display": "Hold the reset button for ten seconds until the display "
    "restarts.",
    "Factory reset of a laptop": "A reset deletes all that is on the disk. Save your files first.",
    "New phone": "Bring the old phone along: credentials are moved to the new one at the desk.",
    "Printing from home": "Install the driver, then add the queue of your floor.",
    "Mail on holidays": "Write an absence note; it is sent once to each correspondent.",
    "Recover access to a shared folder": "Ask the owner of the folder to invite you again; your "
    "files are still there.",
    "Guest network": "Guests get a password for a day at the reception.",
}

if os.environ.get("SCREENSHOTS"):

    def test_the_preview_has_its_picture_taken(browser: Browser, ada: User) -> None:
        with embedded_by_topics("cartrita_search.embedders.OnnxEmbedder"):
            embedder = get_embedder()
            upsert_documents(
                [
                    Document("help_desk", str(key), title, text, vector)
                    for key, ((title, text), vector) in enumerate(
                        zip(
                            HELP_DESK.items(),
                            embedder.embed_documents([" ".join(row) for row in HELP_DESK.items()]),
                            strict=True,
                        )
                    )
                ],
                model=embedder.name,
                index="keep",
            )
            config = RetrievalConfig.objects.create(user=ada)
            browser.open(config_page(config))
            browser.one("#id_question").send_keys("reset a lost password" + Keys.ENTER)
            browser.until(lambda: titles(browser, "cs-edited"))
            browser.slide("#id_vector_weight_slider", 0.35)
            browser.until(lambda: "Edited: 0.35" in browser.one("#cs-edited").text)
            browser.picture("admin-preview")

            browser.theme("dark")
            browser.open(config_page(config), PHONE)
            browser.one("#id_question").send_keys("reset a lost password" + Keys.ENTER)
            browser.until(lambda: titles(browser, "cs-edited"))
            browser.slide("#id_preview_slider", 0.35)
            browser.until(lambda: "Edited: 0.35" in browser.one("#cs-edited").text)
            browser.picture("admin-preview-phone", top=".cs-preview")
