"""How actors are driven, by a stand-in for Ray in which they die as they are told to."""

import types

import pytest

from dcse_jax.cluster import engine
from dcse_jax.runtime.errors import UserError


class RayError(Exception):
  """An actor died."""


class RayTaskError(RayError):
  """What an actor raised is its cause."""

  def __init__(self, cause):
    super().__init__("a page of Ray's own")
    self.cause = cause


class Ray:
  """As much of Ray as the engine uses; what is asked for is done when it is fetched.

  Args:
    room: how many actors are ever placed; the others wait.
    resources: those of each machine.
  """

  exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

  def __init__(self, room=100, resources=({"GPU": 2, "CPU": 8},)):
    self._room, self._resources = room, resources
    self.actors, self.killed, self.options = [], [], None

  def nodes(self):
    return [{"Alive": True, "Resources": each} for each in self._resources]

  def remote(self, **options):
    self.options = options

    def make(kind):
      def create(*arguments):
        self.actors.append(Actor(kind(*arguments), len(self.actors) < self._room))
        return self.actors[-1]

      return types.SimpleNamespace(remote=create)

    return make

  def wait(self, refs, timeout):
    done = [ref for ref in refs if ref.is_placed][:1]
    return done, [ref for ref in refs if ref not in done]

  def get(self, ref):
    try:
      return ref.call()
    except RayError:
      raise
    except Exception as error:
      raise RayTaskError(error) from error

  def kill(self, actor):
    self.killed.append(actor)


class Ref:
  def __init__(self, call, is_placed):
    self.call, self.is_placed = call, is_placed


class Actor:
  def __init__(self, inner, is_placed):
    for name in ("ready", "call"):
      method = getattr(inner, name)
      ask = lambda *arguments, method=method: Ref(lambda: method(*arguments), is_placed)
      setattr(self, name, types.SimpleNamespace(remote=ask))


class Worker:
  """Squares numbers; `deaths` says how often a number still kills."""

  deaths: dict[int, int] = {}

  def square(self, number):
    if self.deaths.get(number):
      self.deaths[number] -= 1
      raise RayError("The actor died unexpectedly.\nA page of Ray's own.")
    if number < 0:
      raise UserError(f"{number} is negative")
    return number**2


def squares(ray, numbers, make=Worker, workers=None):
  cluster = engine.Cluster(make, ray, workers)
  return cluster, sorted(cluster.map([("square", (number,)) for number in numbers]))


@pytest.fixture
def deaths(monkeypatch):
  monkeypatch.setattr(Worker, "deaths", {})
  return Worker.deaths


def test_every_call_is_made_again_by_a_new_actor_where_one_dies(deaths):
  deaths |= {3: 1, 5: 3}
  ray = Ray()
  cluster, found = squares(ray, range(8))
  assert found == [n**2 for n in range(8)]
  # Two GPUs, and one in the place of each of the four that died, and was killed.
  assert len(ray.actors) == 2 + 4 and len(ray.killed) == 4
  assert "4 died" in cluster.summary()


def test_what_is_left_does_not_wait_for_a_place_in_a_smaller_cluster(deaths):
  deaths |= {3: 1}
  ray = Ray(room=2)
  cluster, found = squares(ray, range(8))
  assert found == [n**2 for n in range(8)]
  assert len(ray.actors) == 3
  assert "by 2 actors; 1 died" in cluster.summary()
  # Nor do calls wait for actors that were never placed.
  assert squares(Ray(room=1), range(8), workers=3)[1] == found


def test_what_kills_every_actor_and_what_an_actor_says_end_with_one_line(deaths):
  deaths |= {3: 99}
  with pytest.raises(
    UserError, match=r"square was begun 4 times, .* \(The actor died un"
  ):
    squares(Ray(), range(8))

  def die():
    raise RayError("out of memory")

  with pytest.raises(UserError, match="loading the model was begun 4 times.*of memory"):
    squares(Ray(), range(8), make=die)
  with pytest.raises(UserError, match="^on .*: -1 is negative$"):
    squares(Ray(), [1, -1])


@pytest.mark.parametrize(
  "resources, workers, options, number",
  [
    ([{"GPU": 4, "CPU": 8}, {"GPU": 2}, {"CPU": 9}], None, {"num_gpus": 1}, 6),
    ([{"TPU": 4}, {"TPU": 4}, {"CPU": 9}], None, {"resources": {"TPU": 4}}, 2),
    ([{"CPU": 4}, {"CPU": 8}], None, {"num_cpus": 4}, 2),
    ([{"CPU": 4}, {"CPU": 8}], 3, {"num_cpus": 4}, 3),
    ([{"CPU": 4}, {"CPU": 8}], 24, {"num_cpus": 1}, 24),
  ],
)
def test_an_actor_gets_a_device_and_there_are_as_many_as_devices(
  resources, workers, options, number, monkeypatch
):
  for name in ("NPROC", "RAYON_NUM_THREADS"):
    monkeypatch.setenv(name, "7")  # What actors set in their processes is set here.
  ray = Ray(resources=resources)
  engine.Cluster(Worker, ray, workers)
  assert len(ray.actors) == number
  chosen = {"num_cpus": 1} | options
  assert ray.options == {"max_restarts": 0, "max_task_retries": 0, **chosen}
