"""The study's server: the page for everyone; trials, their pictures and votes for those with a token.

A token comes in the header `Authorization: Bearer ...` alone, so it stands in no address and in no log. A picture is
asked for by its place among the rater's own trials: no name of a file ever comes from outside.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import RequestError
from stages.evaluate.study.definition import CRITERIA, MEDIA, MEDIA_TYPES, Study, read_study
from stages.evaluate.study.order import Trial, plan
from stages.evaluate.study.raters import Rater, find_rater, read_raters
from stages.evaluate.study.vote_log import Conflict, VoteLog, make_vote

HERE = Path(__file__).parent
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MAX_BODY = 4096
MAX_MILLISECONDS = 7 * 24 * 3600 * 1000
PARTS = {"reference": "reference", "a": "A", "b": "B"}


class Answer(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    trial: int = Field(ge=0)
    question: str = Field(max_length=40)
    choice: Literal["A", "B", "tie"]
    milliseconds: int = Field(ge=0, le=MAX_MILLISECONDS)


class Session:
    """One rater's way through the study; what they have done is read from the votes, so a restart loses nothing."""

    def __init__(self, study: Study, rater: Rater, log: VoteLog):
        self.rater = rater
        self.trials: list[Trial] = plan(study, rater.number)
        self._study, self._log = study, log

    def next(self) -> tuple[int, str] | None:
        """The first question without an answer: number of the trial, key of the question."""
        for number in range(len(self.trials)):
            for question in self._study.questions:
                if (self.rater.name, number, question.key) not in self._log.votes:
                    return number, question.key
        return None

    def state(self) -> dict[str, Any]:
        place = self.next()
        number = len(self.trials) if place is None else place[0]
        return {
            "num_trials": len(self.trials),
            "num_done": number,
            "question": None if place is None else place[1],
            "instruction": None if place is None else self.trials[number].instruction,
        }


def session_of(request: Request) -> Session:
    """The session of the rater whose token the request brings; 401 without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    rater = find_rater(request.app.state.raters, token.strip()) if scheme.lower() == "bearer" else None
    if rater is None:
        raise HTTPException(401, "This link isn't valid.", headers={"WWW-Authenticate": "Bearer"})
    return request.app.state.sessions[rater.name]


Rated = Annotated[Session, Depends(session_of)]


def create_app(folder: Path, log: VoteLog) -> FastAPI:
    """The application of the study in the folder; `log` takes its votes."""
    study, study_id = read_study(folder)
    raters = read_raters(folder)
    sessions = {rater.name: Session(study, rater, log) for rater in raters}
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.raters, app.state.sessions = raters, sessions

    @app.middleware("http")
    async def add_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.update(HEADERS)
        return response

    for path, (name, media_type) in PAGE.items():
        content = (HERE / name).read_bytes()
        app.get(path)(_constant(content, media_type))

    @app.get("/api/session")
    def session(session: Rated) -> dict[str, Any]:
        return session.state() | {
            "title": study.title,
            "rater": session.rater.name,
            "criteria": CRITERIA,
            "questions": [question.model_dump() for question in study.questions],
            "ties": study.ties,
        }

    @app.get("/api/trials/{number}/{part}")
    def picture(session: Rated, number: int, part: Literal["reference", "a", "b"]) -> FileResponse:
        if not 0 <= number < len(session.trials):
            raise HTTPException(404, "There is no such trial.")
        path = folder / MEDIA / session.trials[number].files[PARTS[part]]
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix])

    @app.post("/api/votes")
    async def vote(session: Rated, request: Request) -> Response:
        answer = await _read_answer(request)
        if answer.trial >= len(session.trials):
            raise HTTPException(422, f"trial: there are {len(session.trials)}.")
        if answer.question not in {question.key for question in study.questions}:
            raise HTTPException(422, "question: there is no such question.")
        if answer.choice == "tie" and not study.ties:
            raise HTTPException(422, "choice: this study has no ties.")
        answered = (session.rater.name, answer.trial, answer.question) in log.votes
        if not answered and session.next() != (answer.trial, answer.question):
            return JSONResponse({"detail": "Another question is next."} | session.state(), 409)
        trial = session.trials[answer.trial]
        given = make_vote(
            study=study_id,
            rater=session.rater.name,
            key=trial.key,
            is_check=trial.is_check,
            chosen=trial.shown.get(answer.choice),
            **trial.shown,
            **answer.model_dump(),
        )
        try:
            await run_in_threadpool(log.add, given)
        except Conflict:
            return JSONResponse({"detail": "This was answered otherwise before."} | session.state(), 409)
        except OSError as error:
            raise HTTPException(503, f"The vote couldn't be written: {error.strerror}.") from None
        return JSONResponse(session.state())

    return app


def _constant(content: bytes, media_type: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=media_type)


async def _read_answer(request: Request) -> Answer:
    """The body of a request whose sender is known, by now."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, "A vote is shorter than this.")
    try:
        return Answer.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise HTTPException(422, f"{'.'.join(map(str, first['loc'])) or 'vote'}: {first['msg']}.") from None


def serve(folder: Path, host: str, port: int) -> None:
    """Serves until it is stopped.

    Raises:
        UserError: the study or the votes can't be used, nobody may vote, or the port can't be had.
    """
    study, study_id = read_study(folder)
    raters = read_raters(folder)
    if not raters:
        raise RequestError(f"Nobody may vote in {folder} yet: `tokens` makes links for raters.")
    log = VoteLog.open(folder, study_id)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        log.close()
        raise RequestError(f"Port {port} of {host} can't be had: {error.strerror}; --port takes another.") from None
    if log.note:
        print(log.note, flush=True)
    shown = f"[{host}]" if ":" in host else host
    print(
        f"{study.title}: {len(raters)} raters, {len(log.votes)} votes so far, at "
        f"http://{shown}:{listener.getsockname()[1]}/ (Ctrl-C ends it)",
        flush=True,
    )
    if host not in ("127.0.0.1", "::1", "localhost"):
        print("Others can reach this. Tokens travel unencrypted: put a proxy with TLS before it.", flush=True)
    try:
        config = uvicorn.Config(create_app(folder, log), access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        log.close()
