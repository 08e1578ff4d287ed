"""The server, its controls and its visitors.

viser's threads only note what visitors want. What costs time is done in `Viewer.work`, a piece at a time, by whoever
owns the model: the main loop of `nfc_splat.view`, or a training between two steps.
"""

import asyncio
import contextlib
import io
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.view import address
from nfc_splat.view.drawn import MODES, Drawn, Pace, Wish, drawing
from nfc_splat.view.items import (
    View,
    chosen_views,
    frustum_size,
    photograph,
    read_shape,
    shape_files,
    thumbnail,
)
from nfc_splat.view.space import Frame, Pose, first_view
from nfc_splat.view.splats import splat_arrays

if TYPE_CHECKING:
    from nfc_splat.data import Scene
    from nfc_splat.rendering import SceneModel

SPLATS = "splats"
LONGEST = 1000  # side of the pictures that a model draws
MOST_VISITORS = 16
_TRAIN, _OTHER = (60, 110, 200), (230, 120, 30)  # frusta of training views and of those held out
_NOWHERE = "(choose)"
_CLOSE = 3.5  # times its length: a frustum that is nearer would hide the rest

log = logging.getLogger("nfc_splat")


@dataclass(frozen=True, eq=False)
class Subject:
    """What is looked at.

    Attributes:
        scene: where the photographs are.
        title: of the page.
        folder: of the run, for the meshes in it; None for no run.
        splats: whether the model is made of Gaussians, which the browser draws.
        moves: whether the model knows time.
        points: [M, 3] tensor in world units where the scene is, or None.
    """

    scene: "Scene"
    title: str
    folder: Path | None
    splats: bool
    moves: bool
    points: Any


@dataclass(eq=False)
class _Visitor:
    """A browser.

    Attributes:
        client: viser's.
        wants: replaced whenever it shall see something else.
        begun: the `wants` that `pictures` are of.
        pictures: what is being drawn, or None.
        shown: how many pictures it got of them.
        told: why there was no picture, unless there has been one since.
    """

    client: Any
    wants: object = field(default_factory=object)
    begun: object | None = None
    pictures: Iterator[Drawn | None] | None = None
    shown: int = 0
    told: str = ""


class Viewer:
    """A page that shows a model; listens from construction until `close`.

    Args:
        subject: what to show.
        host, port: free, see `nfc_splat.view.address.choose_port`.

    Raises:
        UserError: viser is missing, or somebody took the port meanwhile.
    """

    def __init__(self, subject: Subject, host: str, port: int) -> None:
        self._subject = subject
        self._host = host
        self._views = chosen_views(subject.scene)
        train = subject.scene.splits["train"].cameras
        self._frame = Frame.of(train, subject.points)
        self._poses = [self._frame.placed(view.camera) for view in self._views]
        self._visitors: dict[int, _Visitor] = {}
        self._wake, self._shapes = threading.Event(), threading.Lock()
        self._reading: set[int] = set()
        self._pace, self._splats, self._splats_stale = Pace(), None, True
        self._photograph: tuple[int, Any] | None = None
        begin = first_view(train, subject.points)
        self._server = _listen(subject.title, host, port)
        try:
            if self._server.get_port() != port:
                raise UserError(f"the viewer's port {port} at {host} was taken a moment ago; start again")
            _refuse_strangers(self._server, host)
            self._begin_at(*begin)
            self._add_controls()
            self._add_frusta()
            self._server.on_client_connect(self._enter)
            self._server.on_client_disconnect(self._leave)
        except BaseException:
            self.close()
            raise

    # -------------------------------------------------------------------------------------------- what owners call

    @property
    def watched(self) -> bool:
        """Whether anybody looks."""
        return bool(self._visitors)

    def work(self, model: "SceneModel") -> bool:
        """Do one piece of what visitors wait for, in about a tenth of a second; False when nothing is left to do."""
        visitors = sorted(list(self._visitors.values()), key=lambda visitor: visitor.shown)
        if any(self._advance(visitor, model) for visitor in visitors):
            return True
        if not (visitors and self._splats_stale and self._mode.value == SPLATS):
            return False
        self._splats_stale = False
        self._send_splats(model)
        return True

    def wait(self, seconds: float) -> None:
        """Return when a visitor wants something, or after `seconds`."""
        self._wake.wait(seconds)
        self._wake.clear()

    def model_changed(self, said: str) -> None:
        """Show the model anew; `said` is about it, such as the step."""
        self._splats_stale = True
        self._status.value = said
        if self._mode.value != SPLATS:
            self._restart()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.redirect_stdout(io.StringIO()):  # viser says goodbye
            self._server.stop()

    # -------------------------------------------------------------------------------------------- building the page

    def _begin_at(self, index: int, depth: float) -> None:
        """Let visits begin at a training camera, turning about what it sees `depth` world units ahead."""
        pose = self._frame.placed(self._subject.scene.splits["train"].cameras[index])
        self._first, start = pose, self._server.initial_camera
        self._server.scene.set_up_direction(self._frame.up)
        start.position, start.fov, start.up = pose.position, pose.fov, self._frame.up
        start.look_at = pose.position + depth * self._frame.scale * pose.rotation()[:, 2]

    def _add_controls(self) -> None:
        gui, subject = self._server.gui, self._subject
        # viser fades its canvas in over five frames once an environment is there, which is long in slow browsers.
        self._server.scene.configure_environment_map(None)
        self._server.scene.configure_default_lights(True, cast_shadow=False)
        self._server.scene.add_light_ambient("/light", intensity=0.8)
        gui.configure_theme(show_logo=False, show_share_button=False, control_width="medium")
        self._status = gui.add_text("model", "", multiline=True, disabled=True)
        modes = (SPLATS, *MODES) if subject.splats else MODES
        hint = "splats: drawn by your browser, without view-dependent colours. The rest: drawn by the model."
        self._mode = gui.add_dropdown("show", modes, hint=hint)
        self._mode.on_update(lambda event: self._mode_chosen(event.client))
        self._time = None
        if subject.moves:
            self._time = gui.add_slider("time", 0.0, 1.0, 0.01, 0.0)
            self._time.on_update(lambda _: self._time_chosen())
        self._place = gui.add_dropdown("go to", (_NOWHERE, *(view.name for view in self._views)))
        self._place.on_update(lambda event: self._place_chosen(event.client, event.target.value))
        self._cameras = gui.add_checkbox("cameras", True, hint="blue: training views, orange: held out; click to go")
        self._cameras.on_update(lambda _: self._show_frusta())
        self._said = gui.add_text("picture", "", disabled=True, visible=False)
        if subject.folder is not None:
            for number, path in enumerate(shape_files(subject.folder)):
                box = gui.add_checkbox(path.relative_to(subject.folder).as_posix(), False)
                box.on_update(lambda event, path=path, number=number: self._toggle_shape(event, path, number))

    def _add_frusta(self) -> None:
        self._reach = self._frame.scale * frustum_size(self._subject.scene.splits["train"].cameras)
        self._frusta = []
        for index, (view, pose) in enumerate(zip(self._views, self._poses, strict=True)):
            handle = self._server.scene.add_camera_frustum(
                f"/views/{index}",
                pose.fov,
                pose.aspect,
                # viser's unit is half the height of the picture at a distance of its own
                scale=self._reach,
                thickness=1.5,
                thickness_units="screen",
                color=_TRAIN if view.split == "train" else _OTHER,
                image=self._thumbnail(view),
                format="jpeg",
                wxyz=pose.wxyz,
                position=pose.position,
                cast_shadow=False,
                receive_shadow=False,
            )
            handle.on_click(lambda event, index=index: self._go(event.client, index))
            self._frusta.append(handle)

    def _thumbnail(self, view: View) -> np.ndarray | None:
        """The picture in a frustum; one that cannot be read leaves its frustum empty."""
        try:
            return thumbnail(self._subject.scene, view)
        except UserError as error:
            log.warning("the viewer shows no photograph of %s: %s", view.name, error)
            return None

    # -------------------------------------------------------------------------------------------- what visitors do

    def _enter(self, client: Any) -> None:
        client.camera.fov = self._first.fitted(client.camera.aspect).fov
        visitor = self._visitors[client.client_id] = _Visitor(client)
        client.camera.on_update(lambda _: self._moved(visitor))
        if client.client_id not in self._server.get_clients():
            self._leave(client)  # its farewell came in another thread, before it was noted
        self._wake.set()

    def _leave(self, client: Any) -> None:
        self._visitors.pop(client.client_id, None)

    def _moved(self, visitor: _Visitor) -> None:
        self._show_frusta()
        if self._mode.value != SPLATS:
            visitor.wants = object()
            self._wake.set()

    def _restart(self) -> None:
        for visitor in list(self._visitors.values()):
            visitor.wants = object()
        self._wake.set()

    def _mode_chosen(self, client: Any) -> None:
        self._said.visible = self._mode.value == "error"
        if self._splats is not None:
            self._splats.visible = self._mode.value == SPLATS
        if client is not None and self._mode.value == "error" and self._view_at(client) is None:
            self._go(client, self._nearest(_pose(client)))
        self._restart()

    def _time_chosen(self) -> None:
        self._splats_stale = True
        self._restart()

    def _place_chosen(self, client: Any, name: str) -> None:
        if client is not None and name != _NOWHERE:
            self._go(client, [view.name for view in self._views].index(name))

    def _go(self, client: Any, index: int) -> None:
        """Bring a visitor to a view."""
        pose = self._poses[index].fitted(client.camera.aspect)
        with client.atomic():
            client.camera.position = pose.position
            client.camera.wxyz = pose.wxyz
            client.camera.fov = pose.fov
        if self._time is not None:
            self._time.value = float(self._views[index].camera.times[0])
        if (visitor := self._visitors.get(client.client_id)) is not None:
            self._moved(visitor)

    def _nearest(self, pose: Pose) -> int:
        """The view whose picture is most like the one from `pose`."""
        forward = pose.rotation()[:, 2]
        unlike = [
            float(np.linalg.norm(pose.position - other.position)) + 5 * (1 - float(forward @ other.rotation()[:, 2]))
            for other in self._poses
        ]
        return int(np.argmin(unlike))

    def _view_at(self, client: Any) -> int | None:
        """The view that a visitor is at."""
        pose = _pose(client)
        nearest = self._nearest(pose)
        return nearest if pose.near(self._poses[nearest]) else None

    def _show_frusta(self) -> None:
        """Show them, except those that a visitor is so close to that they would hide the rest."""
        places = [visitor.client.camera.position for visitor in list(self._visitors.values())]
        for handle, pose in zip(self._frusta, self._poses, strict=True):
            close = any(np.linalg.norm(place - pose.position) < _CLOSE * self._reach for place in places)
            visible = self._cameras.value and not close
            if handle.visible != visible:
                handle.visible = visible

    def _toggle_shape(self, event: Any, path: Path, number: int) -> None:
        """Show or hide a mesh or cloud; it is read when it is first wanted."""
        box, name = event.target, f"/shapes/{number}"
        with self._shapes:  # every change of a box comes in a thread of its own
            if number in self._reading:
                return  # who reads it looks at the box afterwards
            handle = self._server.scene.get_handle_by_name(name)
            if handle is not None:
                handle.visible = box.value
            if handle is not None or not box.value:
                return
            self._reading.add(number)
        try:
            self._add_shape(path, name)
        except UserError as error:
            if event.client is not None:
                event.client.add_notification("not shown", self._for_visitors(error), color="red")
            log.warning("the viewer does not show a shape: %s", error)
        finally:
            with self._shapes:
                self._reading.remove(number)
                handle = self._server.scene.get_handle_by_name(name)
                if handle is not None:
                    handle.visible = box.value
            if handle is None:
                box.value = False

    def _add_shape(self, path: Path, name: str) -> None:
        """Read a mesh or cloud and add it to the scene, hidden."""
        scene, shape = self._server.scene, read_shape(path, self._frame, self._subject.scene.world_to_gt)
        if shape.faces is None:
            scene.add_point_cloud(
                name, shape.vertices, shape.colors, point_size=0.02, point_shape="circle", visible=False
            )
            return
        import trimesh

        mesh = trimesh.Trimesh(shape.vertices, shape.faces, vertex_colors=shape.colors, process=False)
        scene.add_mesh_trimesh(name, mesh, cast_shadow=False, receive_shadow=False, visible=False)

    # -------------------------------------------------------------------------------------------- what costs time

    def _send_splats(self, model: "SceneModel") -> None:
        time = None if self._time is None else self._time.value
        arrays = splat_arrays(model, time, self._frame)
        if self._splats is None:
            self._splats = self._server.scene.add_gaussian_splats("/splats", *arrays)
        else:
            self._splats.set_gaussians(*arrays)

    def _advance(self, visitor: _Visitor, model: "SceneModel") -> bool:
        """One piece of what a visitor waits for; False when it has all."""
        wants = visitor.wants
        if visitor.begun is not wants:
            visitor.begun, visitor.shown, visitor.pictures = wants, 0, self._pictures(visitor.client, model)
        if visitor.pictures is None:
            return False
        try:
            drawn = next(visitor.pictures)
        except Exception as error:  # such as a photograph that is gone: the others' pictures go on
            visitor.pictures = None
            self._complain(visitor, error)
            return True
        if drawn is None:
            return True
        visitor.told = ""
        if drawn.final:
            visitor.pictures = None
        if visitor.wants is wants:
            visitor.shown += 1
            visitor.client.scene.set_background_image(drawn.pixels, format="jpeg", jpeg_quality=90)
            if drawn.said:
                self._said.value = drawn.said
        return True

    def _pictures(self, client: Any, model: "SceneModel") -> Iterator[Drawn | None]:
        """The pictures behind what the browser draws; nothing is done before the first is asked for."""
        scene, mode = self._subject.scene, self._mode.value
        if mode == SPLATS:
            plain = np.round(255 * scene.background.numpy()).astype(np.uint8)
            yield Drawn(np.tile(plain, (2, 2, 1)), "", True)
            return
        pose, camera, compared = _pose(client), client.camera, None
        if mode == "error":
            at = self._view_at(client)
            if at is None:
                mode, self._said.value = "color", "go to a photograph to see the error"
            else:
                compared = self._compared(at)
        shrink = min(1.0, LONGEST / max(camera.image_width, camera.image_height, 1))
        width, height = (max(1, round(side * shrink)) for side in (camera.image_width, camera.image_height))
        time = None if self._time is None else self._time.value
        wish = Wish(mode, self._frame.camera(pose, width, height, time), scene.background, compared)
        yield from drawing(model, wish, self._pace)

    def _compared(self, index: int) -> Any:
        """The photograph of a view; the last one is kept."""
        if self._photograph is None or self._photograph[0] != index:
            self._photograph = index, photograph(self._subject.scene, self._views[index], LONGEST)
        return self._photograph[1]

    def _complain(self, visitor: _Visitor, error: Exception) -> None:
        """Tell a visitor why there is no picture, once until there is one."""
        said = self._for_visitors(error)
        if said == visitor.told:
            return
        visitor.told = said
        visitor.client.add_notification("no picture", said, color="red")
        known = isinstance(error, UserError)
        log.warning("the viewer could not draw a picture: %s", error, exc_info=None if known else error)

    def _for_visitors(self, error: Exception) -> str:
        """What went wrong, without the folders of this machine."""
        if not isinstance(error, UserError):
            return f"{type(error).__name__}; more is in the terminal where the viewer runs"
        said = str(error)
        for folder in filter(None, (self._subject.folder, self._subject.scene.root)):
            for form in (folder.resolve(), folder):
                said = said.replace(f"{form}/", "")
        return re.sub(r"(?<!\S)/(?:[^/\s]+/)+", "", said)


def _pose(client: Any) -> Pose:
    """Where a visitor looks from."""
    camera = client.camera
    return Pose(camera.position, camera.wxyz, camera.fov, camera.aspect)


def _listen(title: str, host: str, port: int) -> Any:
    """viser's server, without its banner and without the tunnel to its makers' server that any visitor can ask for."""
    viser = address.load_viser()

    class Server(viser.ViserServer):
        def request_share_url(self, verbose: bool = True) -> None:
            return None

    with contextlib.redirect_stdout(io.StringIO()):
        return Server(host=host, port=port, label=title, verbose=False)


def _refuse_strangers(server: Any, host: str) -> None:
    """Close connections that pages of other sites make, and more than `MOST_VISITORS`; viser lets in all of them."""
    sockets = server._websock_server

    async def look_at(number: int, link: Any) -> None:
        headers = link.request.headers
        if not address.may_connect(headers.get("Origin"), headers.get("Host"), host):
            await link.close(1008, "this page may not connect")
        elif number > MOST_VISITORS:
            await link.close(1013, "too many visitors")

    @sockets.on_client_connect
    async def _(connection: Any) -> None:
        await look_at(len(sockets._live_connections), sockets._live_connections[connection.client_id])

    async def look_at_all() -> None:
        links = list(sockets._live_connections.values())
        await asyncio.gather(*(look_at(number, link) for number, link in enumerate(links, 1)))

    # The server has listened for a moment already.
    asyncio.run_coroutine_threadsafe(look_at_all(), sockets._background_event_loop).result()
