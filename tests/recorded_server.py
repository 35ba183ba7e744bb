#!/usr/bin/env python3
"""A ClearML API server for tests that shares no code with the agent or its embedded server.

Its answers are cut from recorded exchanges of the real server (data/exchanges.jsonl) when it starts:
a test that passes here has met the real server's shapes, error codes and words. State is in memory.

    recorded_server.py            prints {"url", "access_key", "secret_key"} on one line when it listens

Only the standard library is used. Tests steer it by POST to /_test/...:

    task {document}               makes a task, whatever its status; {"id"}
    queue {"name"}                makes a queue; {"id"}
    enqueue {"task", "queue"}     puts a task in a queue, status included
    set {"task", "fields"}        overwrites fields of a task, as another user's call would
    state {}                      everything: tasks, queues, logs, events, reports, calls, connections
    token {}                      a token, as auth.login gives; {"token"}
    token_life {"seconds"}        the life of tokens given from now on
    revoke_tokens {}              every token given so far is refused from now on
    inject {"endpoint", "times", "what", ...}   the next `times` calls of `endpoint` fail:
        what = "status" (with "status", "retry_after"), "drop" (the connection is closed unanswered),
               "expired_token", "web_page", "delay" (with "seconds", then the true answer);
        "applied": true lets the call take effect before its answer is lost
"""

import base64
import copy
import gzip
import hashlib
import hmac
import json
import re
import secrets
import sys
import threading
import time
import uuid
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

EXCHANGES = Path(__file__).parent / "data" / "exchanges.jsonl"

# Status changes that need no force (the real server's table).
ALLOWED = {
    "created": {"queued", "in_progress"},
    "queued": {"created", "in_progress", "stopped"},
    "in_progress": {"stopped", "failed", "created", "completed"},
    "stopped": {"closed", "created", "failed", "queued", "in_progress", "published", "publishing", "completed"},
    "closed": {"created", "failed", "published", "publishing", "stopped"},
    "failed": {"created", "stopped", "published", "queued"},
    "completed": {"published", "in_progress", "created"},
    "publishing": {"published"},
    "published": set(),
}


class Refused(Exception):
    """An error answer; `words` replace the recorded ones in the recorded message."""

    def __init__(self, code, subcode, **words):
        super().__init__(code, subcode)
        self.code, self.subcode, self.words = code, subcode, words


class Recorded:
    """The recorded exchanges, looked up by endpoint and by error code."""

    def __init__(self, path):
        self.answers, self.errors, self.documents = {}, {}, []
        for line in path.read_text(encoding="utf-8").splitlines():
            exchange = json.loads(line)
            endpoint = exchange["path"].rsplit("/", 1)[-1]
            response = exchange["response"]
            meta = response["meta"]
            if exchange["status"] == 200:
                self.answers.setdefault(endpoint, []).append(response)
                if endpoint == "tasks.get_by_id":
                    self.documents.append(response["data"]["task"])
            else:
                key = (meta["result_code"], meta["result_subcode"])
                self.errors.setdefault(key, []).append((endpoint, response))
        # Any meta of a success serves as the frame of the others.
        self.meta = self.answers["auth.login"][0]["meta"]

    def data(self, endpoint, **values):
        """A recorded answer of `endpoint` with `values` in it. A value that no recorded answer has is
        a mistake of this server."""
        recorded = self.answers[endpoint]
        known = set().union(*(answer["data"].keys() for answer in recorded))
        unknown = set(values) - known
        if unknown:
            raise AssertionError(f"{endpoint}: no recorded answer has {unknown}")
        if "fields" in values:
            keys = set().union(*(answer["data"].get("fields", {}).keys() for answer in recorded))
            unknown = set(values["fields"]) - keys - EDITABLE
            if unknown:
                raise AssertionError(f"{endpoint}: no recorded answer has fields {unknown}")
        data = copy.deepcopy(recorded[0]["data"])
        data.update(values)
        return data

    def error(self, endpoint, refused):
        """(result_msg, the whole recorded meta) for an error, in the endpoint's own words if recorded."""
        candidates = self.errors[(refused.code, refused.subcode)]
        own = [response for name, response in candidates if name == endpoint]
        meta = copy.deepcopy((own or [response for _, response in candidates])[0]["meta"])
        for word, value in refused.words.items():
            if word == "message":
                meta["result_msg"] = value
            else:
                meta["result_msg"] = re.sub(
                    rf"\b{word}=(\([^)]*\)|[^,\s)]*)", lambda _: f"{word}={value}", meta["result_msg"]
                )
        return meta

    def new_document(self):
        """What the server puts in every new task: the recorded just-created one, emptied."""
        created = next(d for d in self.documents if d["status"] == "created")
        emptied = copy.deepcopy(created)
        for key in ("script", "hyperparams", "runtime", "container"):
            emptied[key] = {}
        emptied["script"] = {"requirements": {}}
        return emptied


# Fields that tasks.edit echoes in `fields`, besides those in the records.
EDITABLE = {
    "name", "comment", "tags", "system_tags", "type", "parent", "project", "script", "execution",
    "hyperparams", "configuration", "container", "runtime", "output_dest", "models", "output",
}


def now_text():
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def document_time(text):
    """Documents hold milliseconds, written with six digits."""
    return re.sub(r"(\.\d{3})\d{3}", r"\g<1>000", text)


def new_id():
    return uuid.uuid4().hex


def pick(document, fields):
    """`only_fields`: the named fields with their parents; what is unset is left out."""
    if not fields:
        return document
    result = {}
    for field in fields:
        source, target = document, result
        parts = field.split(".")
        for part in parts[:-1]:
            if not isinstance(source, dict) or part not in source:
                source = None
                break
            source = source[part]
            if isinstance(source, list):
                rest = ".".join(parts[parts.index(part) + 1:])
                target[part] = [pick(item, [rest]) for item in source]
                source = None
                break
            target = target.setdefault(part, {})
        if isinstance(source, dict) and parts[-1] in source:
            target[parts[-1]] = source[parts[-1]]
    return result


class Tokens:
    def __init__(self):
        self.key = secrets.token_bytes(32)
        self.life = 30 * 24 * 3600

    def _sign(self, text):
        digest = hmac.new(self.key, text.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    @staticmethod
    def _part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    def new(self, wanted, user):
        now = time.time()
        life = min(wanted, self.life) if wanted else self.life
        payload = {
            "iat": int(now), "exp": int(now + life), "auth_type": "Bearer", "env": "<unknown>",
            "identity": {"user": user["id"], "company": user["company"]["id"], "role": user["role"],
                         "user_name": user["name"], "company_name": user["company"]["name"]},
            "api_version": "2.31", "server_version": "2.0.0", "server_build": "", "feature_set": "basic",
            # Two tokens of one second differ.
            "jti": new_id(),
        }
        text = self._part({"alg": "HS256", "typ": "JWT"}) + "." + self._part(payload)
        return text + "." + self._sign(text)

    def check(self, token):
        text, _, signature = token.rpartition(".")
        if not text or not hmac.compare_digest(self._sign(text).encode(), signature.encode()):
            raise Refused(401, 30, message="Invalid token (invalid jwt token): reason=Signature verification failed")
        payload = text.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if claims["exp"] <= time.time():
            raise Refused(401, 30, message="Invalid token (invalid jwt token): reason=Signature has expired")


class Server:
    """The state, and one method for each endpoint (`tasks.get_by_id` is `tasks_get_by_id`)."""

    def __init__(self):
        self.lock = threading.RLock()
        self.recorded = Recorded(EXCHANGES)
        self.tokens = Tokens()
        self.access_key, self.secret_key = secrets.token_hex(10).upper(), secrets.token_hex(20)
        self.user = self.recorded.data("users.get_current_user")["user"]
        self.company = self.user["company"]["id"]
        self.tasks, self.queues, self.projects, self.workers = {}, {}, {}, {}
        self.events, self.reports, self.calls, self.injected = [], [], [], []
        self.connections = 0
        default = self.make_queue("default", ["default"])
        self.default_queue = default["id"]
        self.make_project("tests")

    # --- the parts that endpoints share

    def make_queue(self, name, system_tags=()):
        queue = copy.deepcopy(self.recorded.data("queues.get_all")["queues"][0])
        queue.update(id=new_id(), name=name, system_tags=list(system_tags), entries=[], created=now_text())
        self.queues[queue["id"]] = queue
        return queue

    def make_project(self, name, description=""):
        project = copy.deepcopy(self.recorded.data("projects.get_all")["projects"][0])
        project.update(id=new_id(), name=name, basename=name.rsplit("/", 1)[-1], description=description,
                       created=now_text(), last_update=now_text())
        self.projects[project["id"]] = project
        return project

    def make_task(self, given):
        task = self.recorded.new_document()
        now = document_time(now_text())
        task.update(id=new_id(), created=now, last_update=now, last_change=now)
        task["project"] = next(iter(self.projects))
        for key, value in copy.deepcopy(given).items():
            if isinstance(value, dict) and isinstance(task.get(key), dict):
                task[key].update(value)
            else:
                task[key] = value
        self.tasks[task["id"]] = task
        return task

    def task(self, request, field="task"):
        self.required(request, field)
        task = self.tasks.get(request[field])
        if task is None:
            raise Refused(400, 101, ids=f"({request[field]})")
        return task

    def required(self, request, field):
        if request.get(field) in (None, ""):
            raise Refused(400, 12, message=f"Validation error (error for field '{field}'. field is required!)")

    def queue(self, request):
        self.required(request, "queue")
        queue = self.queues.get(request["queue"])
        if queue is None:
            raise Refused(400, 701, message=f"Invalid queue id: id={request['queue']}, company={self.company}")
        return queue

    def write(self, task, fields):
        for key, value in fields.items():
            if key == "execution.queue":
                task["execution"]["queue"] = value
            elif value is None:
                task.pop(key, None)
            else:
                task[key] = document_time(value) if isinstance(value, str) and "+00:00" in value else value

    def change_status(self, task, new, request, **more):
        old = task["status"]
        if new != old and not request.get("force") and new not in ALLOWED.get(old, ()):
            raise Refused(400, 110, current_status=old, new_status=new)
        now = now_text()
        fields = {
            "status": new, "status_reason": request.get("status_reason") or "",
            "status_message": request.get("status_message") or "", "status_changed": now,
            "last_update": now, "last_change": now, "last_changed_by": self.user["id"], **more,
        }
        self.write(task, fields)
        return fields

    def seen_alive(self, task):
        task["last_update"] = document_time(now_text())

    def remove_entry(self, task):
        removed = 0
        for queue in self.queues.values():
            kept = [entry for entry in queue["entries"] if entry["task"] != task["id"]]
            removed += len(queue["entries"]) - len(kept)
            queue["entries"] = kept
        return removed

    # --- auth, server, users

    def auth_login(self, request, _):
        wanted = request.get("expiration_sec") if isinstance(request, dict) else None
        return self.recorded.data("auth.login", token=self.tokens.new(wanted, self.user))

    def users_get_current_user(self, *_):
        return self.recorded.data("users.get_current_user")

    def server_info(self, *_):
        return self.recorded.data("server.info")

    def server_config(self, *_):
        raise Refused(403, 20)

    # --- tasks

    def tasks_create(self, request, _):
        self.required(request, "name")
        if len(request["name"]) < 3:
            raise Refused(400, 800)
        return self.recorded.data("tasks.create", id=self.make_task(request)["id"])

    def tasks_get_by_id(self, request, _):
        task = self.task(request)
        return self.recorded.data("tasks.get_by_id", task=pick(task, request.get("only_fields")))

    def tasks_get_all(self, request, _):
        wanted = request.get("id")
        wanted = [wanted] if isinstance(wanted, str) else wanted
        found = [t for t in self.tasks.values() if wanted is None or t["id"] in wanted]
        for field in ("name", "status", "project", "type"):
            value = request.get(field)
            if value:
                values = value if isinstance(value, list) else [value]
                match = (lambda t: re.search(value, t["name"])) if field == "name" else (
                    lambda t, f=field, v=values: t.get(f) in v)
                found = [t for t in found if match(t)]
        return self.recorded.data("tasks.get_all", tasks=[pick(t, request.get("only_fields")) for t in found])

    def tasks_get_hyper_params(self, request, _):
        params = []
        for task_id in request.get("tasks", []):
            task = self.task({"task": task_id})
            flat = [p for section in task.get("hyperparams", {}).values() for p in section.values()]
            params.append({"task": task_id, "hyperparams": flat})
        return self.recorded.data("tasks.get_hyper_params", params=params)

    def tasks_clone(self, request, _):
        source = self.task(request)
        kept = {key: source[key] for key in ("type", "project", "script", "container", "hyperparams",
                                             "configuration") if key in source}
        kept["name"] = request.get("new_task_name") or f"Clone of {source['name']}"
        kept["parent"] = request.get("new_task_parent") or source.get("parent") or source["id"]
        if request.get("new_task_project"):
            kept["project"] = request["new_task_project"]
        return self.recorded.data("tasks.clone", id=self.make_task(kept)["id"])

    def tasks_enqueue(self, request, _):
        task = self.task(request)
        if request.get("queue_name"):
            named = [q for q in self.queues.values() if q["name"] == request["queue_name"]]
            queue = named[0] if named else self.make_queue(request["queue_name"])
        else:
            queue = self.queue({"queue": request.get("queue") or self.default_queue})
        if any(entry["task"] == task["id"] for q in self.queues.values() for entry in q["entries"]):
            raise Refused(400, 706, task=task["id"])
        enqueued_from = task["status"]
        fields = self.change_status(
            task, "queued", request, enqueue_status=enqueued_from, **{"execution.queue": queue["id"]})
        queue["entries"].append({"task": task["id"], "added": document_time(now_text())})
        return self.recorded.data("tasks.enqueue", fields=fields)

    def tasks_dequeue(self, request, _):
        task = self.task(request)
        if task["status"] not in ("queued", "in_progress"):
            return self.recorded.data("tasks.dequeue", fields={}, updated=0)
        self.remove_entry(task)
        new = request.get("new_status") or task.get("enqueue_status") or "created"
        fields = self.change_status(task, new, {**request, "force": True}, enqueue_status=None)
        return self.recorded.data("tasks.dequeue", fields=fields, updated=1)

    def tasks_started(self, request, _):
        task = self.task(request)
        more = {} if task.get("started") else {"started": now_text()}
        return self.recorded.data("tasks.started", fields=self.change_status(task, "in_progress", request, **more))

    def tasks_completed(self, request, _):
        fields = self.change_status(self.task(request), "completed", request, completed=now_text())
        return self.recorded.data("tasks.completed", fields=fields)

    def tasks_stopped(self, request, _):
        fields = self.change_status(self.task(request), "stopped", request, completed=now_text())
        return self.recorded.data("tasks.stopped", fields=fields)

    def tasks_failed(self, request, _):
        task = self.task(request)
        fields = self.change_status(task, "failed", request)
        task["completed"] = document_time(now_text())
        return self.recorded.data("tasks.failed", fields=fields)

    def tasks_stop(self, request, _):
        task = self.task(request)
        if task["status"] == "in_progress" and task.get("last_worker") and not request.get("force"):
            fields = self.change_status(task, "in_progress", {"status_message": "stopping"})
        else:
            words = {"status_message": "Stopped by tests", "force": request.get("force")}
            fields = self.change_status(task, "stopped", words)
            self.remove_entry(task)
        return self.recorded.data("tasks.stop", fields=fields)

    def tasks_reset(self, request, _):
        task = self.task(request)
        words = {"status_reason": "reset", "status_message": "reset", "force": request.get("force")}
        fields = self.change_status(task, "created", words)
        for key in ("started", "completed"):
            task.pop(key, None)
        task["execution"].pop("queue", None)
        self.remove_entry(task)
        return self.recorded.data("tasks.reset", fields=fields)

    def tasks_edit(self, request, _):
        task = self.task(request)
        if task["status"] != "created" and not request.get("force"):
            raise Refused(400, 110, message=f"Invalid task status: expected=created, status={task['status']}")
        if len(request.get("name", "long enough")) < 3:
            raise Refused(400, 800)
        now = now_text()
        fields = {"last_change": now, "last_changed_by": self.user["id"], "last_update": now}
        for key in EDITABLE & set(request):
            value = request[key]
            # Documents are merged one level deep; maps are replaced whole.
            if key in ("script", "execution") and isinstance(value, dict):
                value = {**task.get(key, {}), **value}
            fields[key] = value
        self.write(task, fields)
        return self.recorded.data("tasks.edit", fields=fields)

    # What the SDK edits a section by: the answers are not recorded, only counts in them are read.
    def tasks_edit_hyper_params(self, request, _):
        task = self.task(request)
        sections = task.setdefault("hyperparams", {})
        if request.get("replace_hyperparams") == "all":
            sections.clear()
        for param in request.get("hyperparams", []):
            sections.setdefault(param["section"], {})[param["name"]] = param
        return {"updated": 1}

    def tasks_edit_configuration(self, request, _):
        task = self.task(request)
        for item in request.get("configuration", []):
            task.setdefault("configuration", {})[item["name"]] = item
        return {"updated": 1}

    def tasks_add_or_update_artifacts(self, request, _):
        artifacts = self.task(request)["execution"]["artifacts"]
        new = request.get("artifacts", [])
        keys = {(a["key"], a.get("mode")) for a in new}
        artifacts[:] = [a for a in artifacts if (a["key"], a.get("mode")) not in keys] + new
        return {"updated": 1}

    def tasks_set_requirements(self, request, _):
        task = self.task(request)
        self.required(request, "requirements")
        task["script"]["requirements"] = request["requirements"]
        self.seen_alive(task)
        return self.recorded.data("tasks.set_requirements")

    def tasks_ping(self, request, _):
        self.seen_alive(self.task(request))
        return self.recorded.data("tasks.ping")

    # --- queues

    def queues_get_all(self, request, _):
        found = [q for q in self.queues.values() if not request.get("id") or q["id"] in request["id"]]
        if request.get("name"):
            found = [q for q in found if re.search(request["name"], q["name"])]
        return self.recorded.data("queues.get_all", queues=[pick(q, request.get("only_fields")) for q in found])

    def queues_get_default(self, *_):
        return self.recorded.data("queues.get_default", id=self.default_queue, name="default")

    def queues_create(self, request, _):
        self.required(request, "name")
        return self.recorded.data("queues.create", id=self.make_queue(request["name"])["id"])

    def queues_add_task(self, request, _):
        queue, task = self.queue(request), self.task(request)
        if any(entry["task"] == task["id"] for entry in queue["entries"]):
            raise Refused(400, 706, task=task["id"])
        queue["entries"].append({"task": task["id"], "added": document_time(now_text())})
        # Not recorded; its counterpart's answer with the other verb.
        return {"added": self.recorded.data("queues.remove_task")["removed"]}

    def queues_remove_task(self, request, _):
        self.required(request, "queue")
        self.required(request, "task")
        queue = self.queues.get(request["queue"])
        kept = [e for e in queue["entries"] if e["task"] != request["task"]] if queue else []
        if queue is None or len(kept) == len(queue["entries"]):
            raise Refused(400, 703, task=request["task"], id=request["queue"], company=self.company)
        queue["entries"] = kept
        return self.recorded.data("queues.remove_task", removed=1)

    def queues_get_next_task(self, request, _):
        queue = self.queue(request)
        if not queue["entries"]:
            return {}
        return self.recorded.data("queues.get_next_task", entry=queue["entries"].pop(0))

    # --- events

    def add_events(self, events, worker):
        if not events:
            raise Refused(400, 17)
        added, unknown = 0, {}
        for event in events:
            task = self.tasks.get(event.get("task"))
            if task is None:
                message = f"Invalid task id {event.get('task')}"
                unknown[message] = unknown.get(message, 0) + 1
                continue
            event = {"worker": worker, "timestamp": event.get("ts") or int(time.time() * 1000), **event}
            self.events.append(event)
            self.seen_alive(task)
            added += 1
        if not added:
            words = ", ".join(f"{message}={count}" for message, count in unknown.items())
            raise Refused(400, 131, message=f"Events not added: {words}")
        return added, sum(unknown.values()), {m: n for m, n in unknown.items()}

    def events_add_batch(self, events, worker):
        added, errors, info = self.add_events(events, worker)
        return self.recorded.data("events.add_batch", added=added, errors=errors, errors_info=info)

    def events_add(self, event, worker):
        added, errors, info = self.add_events([event], worker)
        return self.recorded.data("events.add", added=added, errors=errors, errors_info=info)

    def log_of(self, task_id):
        events = [e for e in self.events if e.get("type") == "log" and e["task"] == task_id]
        return sorted(events, key=lambda e: e["timestamp"])

    def events_get_task_log(self, request, _):
        log = self.log_of(self.task(request)["id"])
        # A client pages by the last event's timestamp; `asc` reads from the oldest.
        ascending = request.get("order") == "asc" or request.get("navigate_earlier") is False
        since = request.get("from_timestamp")
        if since is not None:
            log = [e for e in log if (e["timestamp"] > since) == ascending and e["timestamp"] != since]
        batch = request.get("batch_size") or 500
        page = log[:batch] if ascending else log[::-1][:batch]
        return self.recorded.data("events.get_task_log", events=page, returned=len(page), total=len(log))

    # --- workers, projects, models

    def workers_status_report(self, request, _):
        self.required(request, "worker")
        self.required(request, "timestamp")
        self.workers[request["worker"]] = request
        self.reports.append(request)
        task = self.tasks.get(request.get("task"))
        if task:
            self.seen_alive(task)
            task.update(last_worker=request["worker"], last_worker_report=task["last_update"])
        return self.recorded.data("workers.status_report")

    def workers_register(self, request, _):
        self.required(request, "worker")
        self.workers[request["worker"]] = request
        return self.recorded.data("workers.register")

    def workers_unregister(self, request, _):
        self.workers.pop(request.get("worker"), None)
        return self.recorded.data("workers.unregister")

    def workers_get_all(self, *_):
        template = self.recorded.data("workers.get_all")["workers"][0]
        return {"workers": [{**template, "id": worker} for worker in self.workers]}

    def projects_create(self, request, _):
        self.required(request, "name")
        project = self.make_project(request["name"], request.get("description", ""))
        return self.recorded.data("projects.create", id=project["id"])

    def projects_get_all(self, request, _):
        found = [p for p in self.projects.values() if re.search(request.get("name") or "", p["name"])]
        return self.recorded.data("projects.get_all", projects=[pick(p, request.get("only_fields")) for p in found])

    def projects_get_by_id(self, request, _):
        self.required(request, "project")
        project = self.projects.get(request["project"])
        if project is None:
            raise Refused(400, 401, message=f"Invalid project id: id={request['project']}, company={self.company}")
        template = self.recorded.data("projects.get_by_id")["project"]
        return self.recorded.data("projects.get_by_id", project={**template, **project})

    def models_get_all(self, *_):
        return self.recorded.data("models.get_all")

    # --- what tests ask for

    def control(self, verb, request):
        if verb == "task":
            return {"id": self.make_task(request)["id"]}
        if verb == "queue":
            return {"id": self.make_queue(request["name"])["id"]}
        if verb == "enqueue":
            return self.tasks_enqueue(request, None)
        if verb == "set":
            self.write(self.tasks[request["task"]], request["fields"])
            return {}
        if verb == "state":
            logs = {task_id: [e["msg"] for e in self.log_of(task_id)] for task_id in self.tasks}
            return {"tasks": self.tasks, "queues": self.queues, "workers": self.workers, "events": self.events,
                    "reports": self.reports, "calls": self.calls, "connections": self.connections, "logs": logs}
        if verb == "token":
            return {"token": self.tokens.new(None, self.user)}
        if verb == "token_life":
            self.tokens.life = request["seconds"]
            return {}
        if verb == "revoke_tokens":
            self.tokens.key = secrets.token_bytes(32)
            return {}
        if verb == "inject":
            self.injected.append({"times": 1, "applied": False, **request})
            return {}
        raise KeyError(verb)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    # Whoever leaves a connection open is not waited for.
    timeout = 120

    def setup(self):
        super().setup()
        # Counted at the first API call, so that the tests' own control calls are not.
        self.number = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        server = self.server.state
        if self.path.startswith("/_test/"):
            with server.lock:
                try:
                    answer, status = server.control(self.path[len("/_test/"):], json.loads(body or b"{}")), 200
                except Exception as error:  # the test that asked is told
                    answer, status = {"error": repr(error)}, 500
                text = json.dumps(answer).encode()
            self.reply(status, text)
            return
        self.answer_call(server, body)

    def answer_call(self, server, body):
        matched = re.fullmatch(r"/(?:v(\d+\.\d+)/)?([a-z_]+\.[a-z_]+)", self.path.split("?")[0])
        version, endpoint = matched.groups() if matched else (None, self.path.strip("/"))
        with server.lock:
            if self.number is None:
                server.connections += 1
                self.number = server.connections
            call = {
                "endpoint": endpoint, "path": self.path, "connection": self.number, "at": time.time(),
                "headers": {k.lower(): v.split(" ")[0] if k.lower() == "authorization" else v
                            for k, v in self.headers.items()},
                "request": self.readable(body), "status": None,
            }
            server.calls.append(call)
            injected = next((i for i in server.injected if i["endpoint"] == endpoint and i["times"] > 0), None)
            if injected:
                injected["times"] -= 1
        what = injected["what"] if injected else None
        if what == "delay":
            time.sleep(injected["seconds"])
        if not injected or what == "delay" or injected["applied"]:
            with server.lock:
                status, text = self.answer(server, endpoint, version, body)
        extra = {}
        if what == "drop":
            call["status"] = "dropped"
            self.close_connection = True
            return
        if what == "status":
            status = injected["status"]
            text = injected.get("body", "").encode()
            if "retry_after" in injected:
                extra["Retry-After"] = str(injected["retry_after"])
        elif what == "web_page":
            status, text = 200, b"<!doctype html><html><body>ClearML</body></html>"
        elif what == "expired_token":
            expired = Refused(401, 30, message="Invalid token (invalid jwt token): reason=Signature has expired")
            status, text = self.error(server, endpoint, version, expired)
        call["status"] = status
        self.reply(status, text, extra)

    def readable(self, body):
        text = body.decode("utf-8", "replace")
        try:
            return json.loads(text) if text else {}
        except ValueError:
            return text

    def answer(self, server, endpoint, version, body):
        """(status, body) of the true answer."""
        try:
            self.authorize(server, endpoint)
            method = getattr(server, endpoint.replace(".", "_", 1), None) if endpoint.count(".") == 1 else None
            if method is None:
                words = f"Unable to find endpoint for name {endpoint} and version {version or '2.31'}"
                raise Refused(404, 0, message=words)
            kind = (self.headers.get("Content-Type") or "").split(";")[0]
            if kind == "application/json-lines":
                request = [json.loads(line) for line in body.decode("utf-8").splitlines() if line.strip()]
            elif endpoint == "events.add_batch":
                words = f"Invalid content type {kind} for a batch: expected application/json-lines"
                raise Refused(400, 12, message=words)
            else:
                request = json.loads(body) if body.strip() else {}
                if not isinstance(request, dict):
                    request = {}
            data = method(request, self.headers.get("X-ClearML-Worker") or self.headers.get("X-Trains-Worker"))
        except Refused as refused:
            return self.error(server, endpoint, version, refused)
        return 200, self.envelope(server, endpoint, version, copy.deepcopy(server.recorded.meta), data)

    def authorize(self, server, endpoint):
        kind, _, value = (self.headers.get("Authorization") or "").partition(" ")
        if kind == "Basic":
            given = base64.b64decode(value).decode("utf-8", "replace")
            if given != f"{server.access_key}:{server.secret_key}":
                raise Refused(401, 22)
        elif kind == "Bearer":
            server.tokens.check(value)
        else:
            raise Refused(401, 20)

    def error(self, server, endpoint, version, refused):
        try:
            meta = server.recorded.error(endpoint, refused)
        except KeyError:
            # A code that the records lack: the frame of another error, with this one's numbers.
            meta = copy.deepcopy(server.recorded.errors[(400, 101)][0][1]["meta"])
            meta.update(result_code=refused.code, result_subcode=refused.subcode,
                        result_msg=refused.words.get("message", ""))
        return refused.code, self.envelope(server, endpoint, version, meta, {})

    def envelope(self, server, endpoint, version, meta, data):
        meta["id"] = meta["trx"] = self.headers.get("X-ClearML-Trx") or new_id()
        meta["endpoint"]["name"] = endpoint
        if version:
            meta["endpoint"]["requested_version"] = version
        return json.dumps({"meta": meta, "data": data}).encode()

    def reply(self, status, text, extra=None):
        self.send_response(status)
        page = text.startswith(b"<")
        self.send_header("Content-Type", "text/html" if page else "application/json")
        if text and "gzip" in (self.headers.get("Accept-Encoding") or "") and not page:
            text = gzip.compress(text, 1)
            self.send_header("Content-Encoding", "gzip")
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        # A client that went away is no news; a mistake of this server is.
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def main():
    listener = Listener(("127.0.0.1", 0), Handler)
    listener.state = state = Server()
    url = f"http://127.0.0.1:{listener.server_address[1]}"
    print(json.dumps({"url": url, "access_key": state.access_key, "secret_key": state.secret_key}), flush=True)

    def end_with_parent():
        # The test holds the other end of stdin: when it is gone, so is the server.
        sys.stdin.buffer.read()
        listener.shutdown()

    threading.Thread(target=end_with_parent, daemon=True).start()
    listener.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
